// Two linked panels of one slide: pan, zoom, layers, and a heatmap whose errors follow a threshold.
// Used by `wsi-pipeline view`, which fetches tiles, and by report.html, which holds its pictures itself.
//
// A slide is an object with
//   mpp, width, height      um per pixel and size of level 0, pixels; all positions below are such pixels
//   levels                  finest first: {width, height, tileWidth, tileHeight, scale}, scale in level-0 pixels per pixel
//   picture(layer, level, column, row)   a promise of an image or of null; layers slide, tissue and truth
//   heat                    null or a HeatMap
//   detections              [[confidence, x, y], ...]
"use strict";

const wsi = (() => {
  // Labels; 0 is normal, 2 predicted but not judged.
  const TUMOR = 1, UNKNOWN = 255;
  const STEPS = 65535;
  const LAYERS = [
    ["tissue", "Tissue"], ["truth", "Truth"], ["heatmap", "Heatmap"], ["errors", "Errors"], ["detections", "Detections"],
  ];
  const LABELS = ["normal", "tumour", "not judged"];
  const NAMES = { tn: "true negative", fp: "false positive", fn: "false negative", tp: "true positive" };
  // As in the figures: FP cyan, FN yellow, TP red.
  const COLORS = { fp: [0, 255, 255], fn: [255, 255, 0], tp: [255, 0, 0] };
  const DECODED_PX = 96e6;
  const MOST_FETCHES = 8;

  // The lowest step that a threshold calls tumour: scores are float32, as in the stored heatmaps.
  function cutAt(threshold) {
    let step = Math.max(0, Math.floor(threshold * STEPS) - 2);
    while (step <= STEPS && Math.fround(step / STEPS) < threshold) step += 1;
    return step;
  }

  // Scores on a grid over the slide, `steps` of 1/65535 and `labels` (0 normal, 1 tumour, 2 not judged, 255 none).
  class HeatMap {
    constructor({ columns, rows, stride, patch }, steps, labels) {
      Object.assign(this, { columns, rows, stride, patch, steps, labels });
      this.first = (patch - stride) / 2;
      this.threshold = 0.5;
      this.canvases = {};
    }

    setThreshold(threshold) {
      if (threshold === this.threshold) return;
      this.threshold = threshold;
      delete this.canvases.errors;
    }

    kind(cell, cut) {
      const label = this.labels[cell];
      if (label > TUMOR) return null;
      const called = this.steps[cell] >= cut;
      return label === TUMOR ? (called ? "tp" : "fn") : called ? "fp" : "tn";
    }

    counts() {
      const cut = cutAt(this.threshold), found = { tn: 0, fp: 0, fn: 0, tp: 0 };
      for (let cell = 0; cell < this.labels.length; cell += 1) {
        const kind = this.kind(cell, cut);
        if (kind) found[kind] += 1;
      }
      return found;
    }

    // Cell at a position of the slide, -1 where nothing is predicted.
    cellAt(x, y) {
      const column = Math.floor((x - this.first) / this.stride), row = Math.floor((y - this.first) / this.stride);
      if (column < 0 || row < 0 || column >= this.columns || row >= this.rows) return -1;
      const cell = row * this.columns + column;
      return this.labels[cell] === UNKNOWN ? -1 : cell;
    }

    // One pixel a cell, "heatmap" in the colours of the probabilities k / 255, or "errors".
    canvas(layer, palette) {
      if (this.canvases[layer]) return this.canvases[layer];
      const canvas = document.createElement("canvas");
      canvas.width = this.columns;
      canvas.height = this.rows;
      const context = canvas.getContext("2d"), image = context.createImageData(this.columns, this.rows);
      const cut = cutAt(this.threshold);
      for (let cell = 0; cell < this.labels.length; cell += 1) {
        if (this.labels[cell] === UNKNOWN) continue;
        let color = null, alpha = 255;
        if (layer === "heatmap") {
          const score = this.steps[cell] / STEPS;
          color = palette[Math.round(score * 255)];
          // Low probabilities hide less of the tissue.
          alpha = 255 * (0.2 + 0.8 * score);
        } else color = COLORS[this.kind(cell, cut)];
        if (color) image.data.set([color[0], color[1], color[2], alpha], 4 * cell);
      }
      context.putImageData(image, 0, 0);
      this.canvases[layer] = canvas;
      return canvas;
    }

    // Connected areas of one kind of error, the largest first: {cells, x, y, size}, a position inside and the extent.
    areas(kind) {
      const cut = cutAt(this.threshold), seen = new Uint8Array(this.labels.length), found = [];
      for (let start = 0; start < seen.length; start += 1) {
        if (seen[start] || this.kind(start, cut) !== kind) continue;
        const cells = [start];
        seen[start] = 1;
        for (let at = 0; at < cells.length; at += 1) {
          const column = cells[at] % this.columns, row = (cells[at] - column) / this.columns;
          for (let r = Math.max(0, row - 1); r <= Math.min(this.rows - 1, row + 1); r += 1)
            for (let c = Math.max(0, column - 1); c <= Math.min(this.columns - 1, column + 1); c += 1) {
              const next = r * this.columns + c;
              if (!seen[next] && this.kind(next, cut) === kind) { seen[next] = 1; cells.push(next); }
            }
        }
        found.push(this.area(cells));
      }
      return found.sort((a, b) => b.cells - a.cells);
    }

    area(cells) {
      const columns = cells.map((cell) => cell % this.columns);
      const rows = cells.map((cell) => Math.floor(cell / this.columns));
      const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
      const [column, row] = [mean(columns), mean(rows)];
      // An area need not contain its centre.
      const away = (k) => (columns[k] - column) ** 2 + (rows[k] - row) ** 2;
      let nearest = 0;
      for (let k = 1; k < cells.length; k += 1) if (away(k) < away(nearest)) nearest = k;
      const span = (values) => values.reduce((a, b) => Math.max(a, b)) - values.reduce((a, b) => Math.min(a, b)) + 1;
      return {
        cells: cells.length,
        x: columns[nearest] * this.stride + this.patch / 2,
        y: rows[nearest] * this.stride + this.patch / 2,
        size: Math.max(span(columns), span(rows)) * this.stride,
      };
    }
  }

  // Pictures of a slide: a few are asked for at a time, those in view first, and the oldest are forgotten.
  class Pictures {
    constructor(slide, changed, failed) {
      Object.assign(this, { slide, changed, failed, kept: new Map(), wanted: [], fetches: 0, pixels: 0 });
    }

    get(layer, level, column, row) {
      const key = `${layer}/${level}/${column}/${row}`, known = this.kept.get(key);
      if (known) {
        this.kept.delete(key);
        this.kept.set(key, known);
        return known.image;
      }
      this.wanted.push([key, layer, level, column, row]);
      return null;
    }

    peek(layer, level, column, row) {
      return this.kept.get(`${layer}/${level}/${column}/${row}`)?.image ?? null;
    }

    // For another slide; what is still on its way is left to the garbage collector.
    forget() {
      for (const { image } of this.kept.values()) image?.close?.();
      this.kept.clear();
    }

    get waiting() { return this.fetches + this.wanted.length; }

    fetch() {
      while (this.fetches < MOST_FETCHES && this.wanted.length) {
        const [key, ...where] = this.wanted.shift();
        if (this.kept.has(key)) continue;
        const entry = { image: null, pixels: 0 };
        this.kept.set(key, entry);
        this.fetches += 1;
        this.slide.picture(...where).catch((error) => { this.failed(error); return null; }).then((image) => {
          this.fetches -= 1;
          entry.image = image;
          entry.pixels = image ? image.width * image.height : 0;
          this.pixels += entry.pixels;
          for (const [old, { image: shown, pixels }] of this.kept) {
            if (this.pixels <= DECODED_PX || old === key) break;
            this.kept.delete(old);
            this.pixels -= pixels;
            shown?.close?.();
          }
          this.changed();
        });
      }
    }
  }

  class Panel {
    constructor(viewer, root, layers) {
      this.viewer = viewer;
      this.layers = new Set(layers);
      this.root = element("div", "wsi-panel", root);
      const bar = element("div", "wsi-layers", this.root);
      this.boxes = {};
      for (const [layer, title] of LAYERS) {
        const label = element("label", "", bar), box = element("input", "", label);
        box.type = "checkbox";
        box.checked = this.layers.has(layer);
        box.dataset.layer = layer;
        label.append(title);
        box.addEventListener("change", () => this.show(layer, box.checked));
        this.boxes[layer] = box;
      }
      this.canvas = element("canvas", "wsi-canvas", this.root);
      this.canvas.tabIndex = 0;
      this.listen();
    }

    show(layer, shown) {
      if (shown) this.layers.add(layer); else this.layers.delete(layer);
      this.boxes[layer].checked = shown;
      this.viewer.changed();
    }

    listen() {
      const { canvas, viewer } = this, fingers = new Map();
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        viewer.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), this.at(event));
      }, { passive: false });
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        fingers.set(event.pointerId, event);
      });
      canvas.addEventListener("pointermove", (event) => {
        const before = fingers.get(event.pointerId);
        if (before && fingers.size === 1)
          viewer.moveBy(before.clientX - event.clientX, before.clientY - event.clientY);
        else if (before) {
          const [other] = [...fingers.values()].filter((one) => one.pointerId !== event.pointerId);
          const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
          if (apart(before) > 0) viewer.zoom(apart(event) / apart(before), this.at(other));
        }
        if (before) fingers.set(event.pointerId, event);
        viewer.point(this.position(event));
      });
      for (const name of ["pointerup", "pointercancel"])
        canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
      canvas.addEventListener("pointerleave", () => viewer.point(null));
      canvas.addEventListener("dblclick", (event) => viewer.zoom(event.shiftKey ? 0.5 : 2, this.at(event)));
    }

    // Pointer relative to the middle of the panel, CSS pixels.
    at(event) {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    }

    position(event) {
      const [x, y] = this.at(event), { view } = this.viewer;
      return [view.x + x / view.scale, view.y + y / view.scale];
    }

    draw() {
      const { canvas, viewer } = this, { slide, view } = viewer;
      const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
      if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
      if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.globalAlpha = 1;
      context.fillStyle = "#e8e8e8";
      context.fillRect(0, 0, canvas.width, canvas.height);
      if (!slide) return;
      const scale = view.scale * ratio;
      // Device pixels of a position on the slide; rounded, so that neighbours touch.
      const toX = (x) => Math.round((x - view.x) * scale + canvas.width / 2);
      const toY = (y) => Math.round((y - view.y) * scale + canvas.height / 2);
      context.fillStyle = "#ffffff";
      context.fillRect(toX(0), toY(0), toX(slide.width) - toX(0), toY(slide.height) - toY(0));
      context.imageSmoothingEnabled = scale < 3;
      const target = this.levelFor(scale);
      this.drawTiles(context, "slide", target, toX, toY);
      this.drawHeat(context, toX, toY);
      for (const layer of ["tissue", "truth"])
        if (this.layers.has(layer)) this.drawTiles(context, layer, target, toX, toY);
      if (this.layers.has("detections")) this.drawDetections(context, ratio, toX, toY);
      this.drawScaleBar(context, ratio);
    }

    // The coarsest level with at least a pixel for each of the screen's.
    levelFor(scale) {
      const { levels } = this.viewer.slide;
      let found = 0;
      for (let k = 0; k < levels.length; k += 1) if (levels[k].scale * scale <= 1.2) found = k;
      return found;
    }

    // Coarser tiles that are there show until the right ones come; the coarsest level is always asked for.
    drawTiles(context, layer, target, toX, toY) {
      const { pictures, slide } = this.viewer, { levels } = slide, coarsest = levels.length - 1;
      // Lines have another width in each level, so only those of the right one are shown.
      for (let k = layer === "slide" ? coarsest : target; k >= target; k -= 1) {
        const asked = k === target || k === coarsest;
        const level = levels[k], acrossPx = level.tileWidth * level.scale, downPx = level.tileHeight * level.scale;
        const [left, top, right, bottom] = this.visible();
        const lastColumn = Math.min(Math.ceil(level.width / level.tileWidth) - 1, Math.floor(right / acrossPx));
        const lastRow = Math.min(Math.ceil(level.height / level.tileHeight) - 1, Math.floor(bottom / downPx));
        for (let row = Math.max(0, Math.floor(top / downPx)); row <= lastRow; row += 1)
          for (let column = Math.max(0, Math.floor(left / acrossPx)); column <= lastColumn; column += 1) {
            const image = asked ? pictures.get(layer, k, column, row) : pictures.peek(layer, k, column, row);
            if (!image) continue;
            const width = Math.min(level.tileWidth, level.width - column * level.tileWidth);
            const height = Math.min(level.tileHeight, level.height - row * level.tileHeight);
            const x = toX(column * acrossPx), y = toY(row * downPx);
            context.drawImage(image, 0, 0, width, height, x, y,
              toX(column * acrossPx + width * level.scale) - x, toY(row * downPx + height * level.scale) - y);
          }
      }
    }

    visible() {
      const { view } = this.viewer, halfX = this.canvas.clientWidth / 2 / view.scale;
      const halfY = this.canvas.clientHeight / 2 / view.scale;
      return [view.x - halfX, view.y - halfY, view.x + halfX, view.y + halfY];
    }

    drawHeat(context, toX, toY) {
      const { slide, opacity, palette } = this.viewer, { heat } = slide;
      if (!heat) return;
      context.globalAlpha = opacity;
      context.imageSmoothingEnabled = false;
      const x = toX(heat.first), y = toY(heat.first);
      for (const layer of ["heatmap", "errors"])
        if (this.layers.has(layer))
          context.drawImage(heat.canvas(layer, palette), x, y,
            toX(heat.first + heat.columns * heat.stride) - x, toY(heat.first + heat.rows * heat.stride) - y);
      context.globalAlpha = 1;
      context.imageSmoothingEnabled = true;
    }

    drawDetections(context, ratio, toX, toY) {
      for (const [, x, y] of this.viewer.slide.detections)
        for (const [color, width] of [["#ffffff", 4], ["#000000", 2]]) {
          context.strokeStyle = color;
          context.lineWidth = width * ratio;
          context.beginPath();
          context.arc(toX(x), toY(y), 8 * ratio, 0, 2 * Math.PI);
          context.stroke();
        }
    }

    drawScaleBar(context, ratio) {
      const { view, slide } = this.viewer, perPx = slide.mpp / view.scale;
      const length = roundLength(perPx * 160), width = (length / perPx) * ratio;
      const x = 12 * ratio, y = this.canvas.height - 14 * ratio;
      const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
      context.font = `${12 * ratio}px sans-serif`;
      context.fillStyle = "rgba(255, 255, 255, 0.8)";
      context.fillRect(x - 6 * ratio, y - 20 * ratio, Math.max(width, context.measureText(text).width) + 12 * ratio, 28 * ratio);
      context.fillStyle = "#000000";
      context.fillRect(x, y, width, 3 * ratio);
      context.fillText(text, x, y - 5 * ratio);
    }
  }

  // The longest of 1, 2 and 5 times a power of ten that is not longer, um.
  function roundLength(most) {
    const power = 10 ** Math.floor(Math.log10(most));
    return [5, 2, 1].find((step) => step * power <= most) * power;
  }

  class Viewer {
    // `pointed` is called with what is under the pointer, or null; `moved` after each change of the view; `failed` with
    // the error of a picture that cannot be had.
    constructor(root, { pointed = () => {}, moved = () => {}, failed = () => {}, left = ["truth"], right = ["heatmap"] } = {}) {
      Object.assign(this, { pointed, moved, failed, slide: null, view: { x: 0, y: 0, scale: 1 }, opacity: 0.6, scheduled: false });
      this.panels = [new Panel(this, root, left), new Panel(this, root, right)];
      new ResizeObserver(() => this.changed()).observe(root);
    }

    open(slide) {
      this.slide = slide;
      this.pictures?.forget();
      this.pictures = new Pictures(slide, () => this.changed(), this.failed);
      this.current = { fp: null, fn: null };
      this.fit();
    }

    close() {
      this.slide = null;
      this.changed();
    }

    // Whether all that is in view is shown.
    get settled() { return !this.scheduled && (!this.slide || this.pictures.waiting === 0); }

    changed() {
      if (this.scheduled) return;
      this.scheduled = true;
      requestAnimationFrame(() => {
        this.scheduled = false;
        if (this.pictures) this.pictures.wanted = [];
        for (const panel of this.panels) panel.draw();
        if (this.slide) this.pictures.fetch();
      });
    }

    fitting() {
      const { clientWidth, clientHeight } = this.panels[0].canvas;
      return 0.95 * Math.min(clientWidth / this.slide.width, clientHeight / this.slide.height);
    }

    fit() {
      this.look({ x: this.slide.width / 2, y: this.slide.height / 2, scale: this.fitting() });
    }

    look({ x, y, scale }) {
      const least = Math.min(this.fitting(), 1) / 4;
      const inside = (value, most) => Math.min(Math.max(value, 0), most);
      this.view = {
        x: inside(x, this.slide.width), y: inside(y, this.slide.height), scale: Math.min(Math.max(scale, least), 16),
      };
      this.moved(this.view);
      this.changed();
    }

    moveBy(x, y) {
      if (!this.slide) return;
      const { view } = this;
      this.look({ ...view, x: view.x + x / view.scale, y: view.y + y / view.scale });
    }

    zoom(factor, [x, y] = [0, 0]) {
      if (!this.slide) return;
      const { view } = this, scale = Math.min(Math.max(view.scale * factor, Math.min(this.fitting(), 1) / 4), 16);
      // What is under the pointer stays there.
      const by = 1 / view.scale - 1 / scale;
      this.look({ x: view.x + x * by, y: view.y + y * by, scale });
    }

    setThreshold(threshold) {
      this.slide?.heat?.setThreshold(threshold);
      this.current = { fp: null, fn: null };
      this.changed();
    }

    setPalette(palette) {
      this.palette = palette;
      delete this.slide?.heat?.canvases.heatmap;
      this.changed();
    }

    setOpacity(opacity) {
      this.opacity = opacity;
      this.changed();
    }

    // Go to the next area of false positives ("fp") or false negatives ("fn"), the largest first; null without any.
    jump(kind, by = 1) {
      const areas = this.slide?.heat?.areas(kind) ?? [];
      if (!areas.length) return null;
      const from = this.current[kind] ?? (by > 0 ? -1 : 0), number = (from + by + areas.length) % areas.length;
      const area = areas[number];
      this.current[kind] = number;
      const { clientWidth, clientHeight } = this.panels[0].canvas;
      this.look({ ...area, scale: Math.min(clientWidth, clientHeight) / (3 * area.size) });
      return { number: number + 1, of: areas.length, cells: area.cells };
    }

    point(position) {
      const { slide } = this;
      if (!slide || !position) return this.pointed(null);
      const [x, y] = position;
      if (x < 0 || y < 0 || x >= slide.width || y >= slide.height) return this.pointed(null);
      const cell = slide.heat ? slide.heat.cellAt(x, y) : -1;
      return this.pointed({
        x: Math.floor(x), y: Math.floor(y), mm: [(x * slide.mpp) / 1000, (y * slide.mpp) / 1000],
        probability: cell < 0 ? null : slide.heat.steps[cell] / STEPS,
        truth: cell < 0 ? null : LABELS[slide.heat.labels[cell]],
      });
    }
  }

  // Threshold, opacity and colour map below the panels. `changed` is called after each change of the threshold.
  class Controls {
    constructor(root, viewer, changed) {
      Object.assign(this, { viewer, changed, operatingPoint: 0.5 });
      const labelled = (text) => element("label", "", root, text);
      const range = (label, step) => Object.assign(element("input", "", label), { type: "range", min: 0, max: 1, step });
      const threshold = labelled("Threshold");
      this.slider = range(threshold, 0.001);
      this.number = Object.assign(element("input", "", threshold), { type: "number", min: 0, max: 1, step: "any" });
      this.slider.dataset.control = "threshold-slider";
      this.number.dataset.control = "threshold";
      this.button = element("button", "", root);
      this.button.type = "button";
      this.button.dataset.control = "operating-point";
      const opacity = range(labelled("Opacity"), 0.05);
      opacity.value = viewer.opacity;
      opacity.dataset.control = "opacity";
      this.maps = element("select", "", labelled("Colours"));
      this.maps.dataset.control = "colours";
      const scale = labelled("Probability 0");
      this.scale = element("canvas", "wsi-scale", scale);
      scale.append("1");
      this.slider.addEventListener("input", () => this.set(Number(this.slider.value)));
      this.number.addEventListener("input", () => this.set(this.threshold));
      this.button.addEventListener("click", () => this.set(this.operatingPoint));
      opacity.addEventListener("input", () => viewer.setOpacity(Number(opacity.value)));
      this.maps.addEventListener("change", () => this.color());
    }

    // The operating point of a model, and colour maps by name: for each the colours of the probabilities k / 255.
    show(operatingPoint, palettes) {
      this.operatingPoint = operatingPoint;
      this.palettes = palettes;
      this.button.textContent = `Operating point ${Number(operatingPoint.toPrecision(4))}`;
      const chosen = this.maps.value;
      this.maps.replaceChildren(...Object.keys(palettes).map((name) => new Option(name, name, false, name === chosen)));
      this.color();
      this.set(operatingPoint);
    }

    color() {
      const palette = this.palettes[this.maps.value];
      Object.assign(this.scale, { width: palette.length, height: 1 });
      const context = this.scale.getContext("2d"), image = context.createImageData(palette.length, 1);
      palette.forEach(([red, green, blue], k) => image.data.set([red, green, blue, 255], 4 * k));
      context.putImageData(image, 0, 0);
      this.viewer.setPalette(palette);
    }

    get threshold() {
      const value = Number(this.number.value);
      return Number.isFinite(value) ? Math.min(Math.max(value, 0), 1) : 0;
    }

    set(threshold) {
      // What is being typed stays as it is.
      if (document.activeElement !== this.number) this.number.value = threshold;
      this.slider.value = threshold;
      this.viewer.setThreshold(threshold);
      this.changed(threshold);
    }
  }

  function pointedText(at) {
    if (!at) return "";
    const where = `x ${at.x}, y ${at.y} px (${at.mm[0].toFixed(3)}, ${at.mm[1].toFixed(3)} mm)`;
    return at.probability === null ? where : `${where} · tumour probability ${at.probability.toFixed(4)} · truth ${at.truth}`;
  }

  function element(tag, className, parent, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    parent?.append(made);
    return made;
  }

  // A confusion matrix as a table, whose cells are then set by `fill`.
  class Matrix {
    constructor(root, title) {
      this.table = element("table", "wsi-matrix", root);
      this.caption = element("caption", "", this.table, title);
      const head = element("tr", "", this.table);
      for (const text of ["", "called normal", "called tumour"]) element("th", "", head, text);
      this.cells = {};
      for (const [truth, kinds] of [["normal", ["tn", "fp"]], ["tumour", ["fn", "tp"]]]) {
        const row = element("tr", "", this.table);
        element("th", "", row, truth);
        for (const kind of kinds) {
          this.cells[kind] = element("td", `wsi-${kind}`, row);
          this.cells[kind].title = NAMES[kind];
          this.cells[kind].dataset.kind = kind;
        }
      }
      this.ratios = element("p", "wsi-ratios", root);
    }

    title(text) { this.caption.textContent = text; }

    fill(counts) {
      for (const [kind, cell] of Object.entries(this.cells))
        cell.textContent = counts ? counts[kind].toLocaleString("en-US") : "–";
      if (!counts) { this.ratios.textContent = ""; return; }
      const { tp, fp, fn, tn } = counts;
      const share = (part, all) => (all ? (part / all).toFixed(4) : "–");
      this.ratios.textContent = `sensitivity ${share(tp, tp + fn)} · specificity ${share(tn, tn + fp)} · ` +
        `precision ${share(tp, tp + fp)} · F1 ${share(2 * tp, 2 * tp + fp + fn)}`;
    }
  }

  return { HeatMap, Viewer, Matrix, Controls, cutAt, element, pointedText };
})();
