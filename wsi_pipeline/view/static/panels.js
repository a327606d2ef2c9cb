// Two linked panels of one slide with pan, zoom, layers, a heatmap, and its errors at an adjustable threshold.
// Used by `wsi-pipeline view`, which fetches tiles from the server, and by report.html, which embeds thumbnails.
//
// A slide is an object with
//   mpp, width, height      um per pixel and size of level 0; all positions are in level-0 pixels
//   levels                  finest first: {width, height, tileWidth, tileHeight, scale}, scale in level-0 pixels per pixel
//   picture(layer, level, column, row)   promise of an image, or of null for an empty tile; layers slide, tissue, truth
//   heat                    a Heatmap, or null
//   detections              [[confidence, x, y], ...]
"use strict";

const wsi = (() => {
  // Labels of positions: 0 normal, 1 tumour, 2 predicted but not scored, 255 not predicted.
  const TUMOR = 1, UNKNOWN = 255;
  const STEPS = 65536;
  const LAYERS = [
    ["tissue", "Tissue"], ["truth", "Truth"], ["heatmap", "Heatmap"], ["errors", "Errors"], ["detections", "Detections"],
  ];
  const LABELS = ["normal", "tumour", "not judged"];
  const NAMES = { tn: "true negative", fp: "false positive", fn: "false negative", tp: "true positive" };
  // Same colours as CONFUSION_COLORS in wsi_pipeline/plots/colors.py.
  const COLORS = { fp: [0, 255, 255], fn: [255, 255, 0], tp: [255, 0, 0] };
  const MAX_CACHED_PX = 96e6;
  const MAX_FETCHES = 8;

  // Scores are steps of log odds (wsi_pipeline/metrics/steps.py): step k begins at 0.03 sinh((k - 32768) / 2965).
  const PROBABILITIES = Float32Array.from(
    { length: STEPS }, (_, step) => 1 / (1 + Math.exp(-0.03 * Math.sinh((step + 0.5 - 32768) / 2965))));

  // The lowest step classified as tumour at a threshold, a probability: the one that begins nearest to it. Whole percents
  // and operating points that were chosen on patches are beginnings of steps.
  function thresholdStep(threshold) {
    const logOdds = Math.log(threshold / (1 - threshold));
    return Math.min(Math.max(Math.round(2965 * Math.asinh(logOdds / 0.03)) + 32768, 0), STEPS);
  }

  // Scores on a grid over the slide: `steps` (uint16) and `labels` (uint8, see above), both row by row.
  class Heatmap {
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
      const cut = thresholdStep(this.threshold), found = { tn: 0, fp: 0, fn: 0, tp: 0 };
      for (let cell = 0; cell < this.labels.length; cell += 1) {
        const kind = this.kind(cell, cut);
        if (kind) found[kind] += 1;
      }
      return found;
    }

    // Index of the cell at a position on the slide, -1 where nothing is predicted.
    cellAt(x, y) {
      const column = Math.floor((x - this.first) / this.stride), row = Math.floor((y - this.first) / this.stride);
      if (column < 0 || row < 0 || column >= this.columns || row >= this.rows) return -1;
      const cell = row * this.columns + column;
      return this.labels[cell] === UNKNOWN ? -1 : cell;
    }

    // Canvas with one pixel per cell: layer "heatmap", coloured by `palette` (probabilities k / 255), or "errors".
    canvas(layer, palette) {
      if (this.canvases[layer]) return this.canvases[layer];
      const canvas = document.createElement("canvas");
      canvas.width = this.columns;
      canvas.height = this.rows;
      const context = canvas.getContext("2d"), image = context.createImageData(this.columns, this.rows);
      const cut = thresholdStep(this.threshold);
      for (let cell = 0; cell < this.labels.length; cell += 1) {
        if (this.labels[cell] === UNKNOWN) continue;
        let color = null, alpha = 255;
        if (layer === "heatmap") {
          const score = PROBABILITIES[this.steps[cell]];
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

    // 8-connected components of "fp" or "fn" cells, largest first: {cells, x, y, size}: number of cells, a position
    // inside, and the longer edge of the bounding box.
    components(kind) {
      const cut = thresholdStep(this.threshold), seen = new Uint8Array(this.labels.length), found = [];
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
        found.push(this.component(cells));
      }
      return found.sort((a, b) => b.cells - a.cells);
    }

    component(cells) {
      const columns = cells.map((cell) => cell % this.columns);
      const rows = cells.map((cell) => Math.floor(cell / this.columns));
      const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
      const [column, row] = [mean(columns), mean(rows)];
      // The cell nearest to the centroid: the centroid itself may lie outside the component.
      const distance = (k) => (columns[k] - column) ** 2 + (rows[k] - row) ** 2;
      let nearest = 0;
      for (let k = 1; k < cells.length; k += 1) if (distance(k) < distance(nearest)) nearest = k;
      const span = (values) => values.reduce((a, b) => Math.max(a, b)) - values.reduce((a, b) => Math.min(a, b)) + 1;
      return {
        cells: cells.length,
        x: columns[nearest] * this.stride + this.patch / 2,
        y: rows[nearest] * this.stride + this.patch / 2,
        size: Math.max(span(columns), span(rows)) * this.stride,
      };
    }
  }

  // Least recently used cache of a slide's tiles. Fetches at most MAX_FETCHES at a time.
  class TileCache {
    constructor(slide, onLoad, onError) {
      Object.assign(this, { slide, onLoad, onError, cache: new Map(), queue: [], fetches: 0, pixels: 0 });
    }

    get(layer, level, column, row) {
      const key = `${layer}/${level}/${column}/${row}`, known = this.cache.get(key);
      if (known) {
        this.cache.delete(key);
        this.cache.set(key, known);
        return known.image;
      }
      this.queue.push([key, layer, level, column, row]);
      return null;
    }

    peek(layer, level, column, row) {
      return this.cache.get(`${layer}/${level}/${column}/${row}`)?.image ?? null;
    }

    // Free the images when another slide opens. The garbage collector frees those that are still being fetched.
    clear() {
      for (const { image } of this.cache.values()) image?.close?.();
      this.cache.clear();
    }

    get waiting() { return this.fetches + this.queue.length; }

    fetch() {
      while (this.fetches < MAX_FETCHES && this.queue.length) {
        const [key, ...where] = this.queue.shift();
        if (this.cache.has(key)) continue;
        const entry = { image: null, pixels: 0 };
        this.cache.set(key, entry);
        this.fetches += 1;
        this.slide.picture(...where).catch((error) => { this.onError(error); return null; }).then((image) => {
          this.fetches -= 1;
          entry.image = image;
          entry.pixels = image ? image.width * image.height : 0;
          this.pixels += entry.pixels;
          for (const [old, { image: shown, pixels }] of this.cache) {
            if (this.pixels <= MAX_CACHED_PX || old === key) break;
            this.cache.delete(old);
            this.pixels -= pixels;
            shown?.close?.();
          }
          this.onLoad();
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
      this.viewer.scheduleDraw();
    }

    listen() {
      const { canvas, viewer } = this, pointers = new Map();
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        viewer.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), this.at(event));
      }, { passive: false });
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        pointers.set(event.pointerId, event);
      });
      canvas.addEventListener("pointermove", (event) => {
        const before = pointers.get(event.pointerId);
        if (before && pointers.size === 1)
          viewer.moveBy(before.clientX - event.clientX, before.clientY - event.clientY);
        else if (before) {
          const [other] = [...pointers.values()].filter((one) => one.pointerId !== event.pointerId);
          const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
          if (apart(before) > 0) viewer.zoom(apart(event) / apart(before), this.at(other));
        }
        if (before) pointers.set(event.pointerId, event);
        viewer.reportPointer(this.position(event));
      });
      for (const name of ["pointerup", "pointercancel"])
        canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
      canvas.addEventListener("pointerleave", () => viewer.reportPointer(null));
      canvas.addEventListener("dblclick", (event) => viewer.zoom(event.shiftKey ? 0.5 : 2, this.at(event)));
    }

    // Position of the pointer relative to the centre of the panel, CSS pixels.
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
      // Device pixels of a position on the slide. Rounded, else neighbouring tiles would show seams.
      const toX = (x) => Math.round((x - view.x) * scale + canvas.width / 2);
      const toY = (y) => Math.round((y - view.y) * scale + canvas.height / 2);
      context.fillStyle = "#ffffff";
      context.fillRect(toX(0), toY(0), toX(slide.width) - toX(0), toY(slide.height) - toY(0));
      context.imageSmoothingEnabled = scale < 3;
      const target = this.chooseLevel(scale);
      this.drawTiles(context, "slide", target, toX, toY);
      this.drawHeat(context, toX, toY);
      for (const layer of ["tissue", "truth"])
        if (this.layers.has(layer)) this.drawTiles(context, layer, target, toX, toY);
      if (this.layers.has("detections")) this.drawDetections(context, ratio, toX, toY);
      this.drawScaleBar(context, ratio);
    }

    // The coarsest level with about one pixel or more per device pixel.
    chooseLevel(scale) {
      const { levels } = this.viewer.slide;
      let found = 0;
      for (let k = 0; k < levels.length; k += 1) if (levels[k].scale * scale <= 1.2) found = k;
      return found;
    }

    // Draw cached coarser tiles until those of the target level arrive. The coarsest level is always fetched.
    drawTiles(context, layer, target, toX, toY) {
      const { tiles, slide } = this.viewer, { levels } = slide, coarsest = levels.length - 1;
      // Outlines are drawn at the target level only: scaled from a coarser one, their lines would be too thick.
      for (let k = layer === "slide" ? coarsest : target; k >= target; k -= 1) {
        const fetched = k === target || k === coarsest;
        const level = levels[k], acrossPx = level.tileWidth * level.scale, downPx = level.tileHeight * level.scale;
        const [left, top, right, bottom] = this.visible();
        const lastColumn = Math.min(Math.ceil(level.width / level.tileWidth) - 1, Math.floor(right / acrossPx));
        const lastRow = Math.min(Math.ceil(level.height / level.tileHeight) - 1, Math.floor(bottom / downPx));
        for (let row = Math.max(0, Math.floor(top / downPx)); row <= lastRow; row += 1)
          for (let column = Math.max(0, Math.floor(left / acrossPx)); column <= lastColumn; column += 1) {
            const image = fetched ? tiles.get(layer, k, column, row) : tiles.peek(layer, k, column, row);
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
      const length = scaleBarLength(perPx * 160), width = (length / perPx) * ratio;
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

  // The longest 1, 2 or 5 times a power of ten that is at most `most`, um.
  function scaleBarLength(most) {
    const power = 10 ** Math.floor(Math.log10(most));
    return [5, 2, 1].find((step) => step * power <= most) * power;
  }

  class Viewer {
    // `onPointer` is called with position, probability and truth under the pointer, or null; `onMove` after each change
    // of the view; `onError` with the error of a failed tile.
    constructor(root, { onPointer = () => {}, onMove = () => {}, onError = () => {}, left = ["truth"], right = ["heatmap"] } = {}) {
      Object.assign(this, { onPointer, onMove, onError, slide: null, view: { x: 0, y: 0, scale: 1 }, opacity: 0.6, drawScheduled: false });
      this.panels = [new Panel(this, root, left), new Panel(this, root, right)];
      new ResizeObserver(() => this.scheduleDraw()).observe(root);
    }

    open(slide) {
      this.slide = slide;
      this.tiles?.clear();
      this.tiles = new TileCache(slide, () => this.scheduleDraw(), this.onError);
      this.current = { fp: null, fn: null };
      this.fit();
    }

    close() {
      this.slide = null;
      this.scheduleDraw();
    }

    // Whether everything in view is drawn, with no tile outstanding.
    get settled() { return !this.drawScheduled && (!this.slide || this.tiles.waiting === 0); }

    scheduleDraw() {
      if (this.drawScheduled) return;
      this.drawScheduled = true;
      requestAnimationFrame(() => {
        this.drawScheduled = false;
        if (this.tiles) this.tiles.queue = [];
        for (const panel of this.panels) panel.draw();
        if (this.slide) this.tiles.fetch();
      });
    }

    fitScale() {
      const { clientWidth, clientHeight } = this.panels[0].canvas;
      return 0.95 * Math.min(clientWidth / this.slide.width, clientHeight / this.slide.height);
    }

    fit() {
      this.setView({ x: this.slide.width / 2, y: this.slide.height / 2, scale: this.fitScale() });
    }

    setView({ x, y, scale }) {
      const least = Math.min(this.fitScale(), 1) / 4;
      const clamp = (value, most) => Math.min(Math.max(value, 0), most);
      this.view = {
        x: clamp(x, this.slide.width), y: clamp(y, this.slide.height), scale: Math.min(Math.max(scale, least), 16),
      };
      this.onMove(this.view);
      this.scheduleDraw();
    }

    moveBy(x, y) {
      if (!this.slide) return;
      const { view } = this;
      this.setView({ ...view, x: view.x + x / view.scale, y: view.y + y / view.scale });
    }

    zoom(factor, [x, y] = [0, 0]) {
      if (!this.slide) return;
      const { view } = this, scale = Math.min(Math.max(view.scale * factor, Math.min(this.fitScale(), 1) / 4), 16);
      // Keep the position under the pointer fixed.
      const by = 1 / view.scale - 1 / scale;
      this.setView({ x: view.x + x * by, y: view.y + y * by, scale });
    }

    setThreshold(threshold) {
      this.slide?.heat?.setThreshold(threshold);
      this.current = { fp: null, fn: null };
      this.scheduleDraw();
    }

    setPalette(palette) {
      this.palette = palette;
      delete this.slide?.heat?.canvases.heatmap;
      this.scheduleDraw();
    }

    setOpacity(opacity) {
      this.opacity = opacity;
      this.scheduleDraw();
    }

    // Center the next connected component of false positives ("fp") or false negatives ("fn"), largest first. Null
    // without any.
    jump(kind, by = 1) {
      const components = this.slide?.heat?.components(kind) ?? [];
      if (!components.length) return null;
      const from = this.current[kind] ?? (by > 0 ? -1 : 0), number = (from + by + components.length) % components.length;
      const component = components[number];
      this.current[kind] = number;
      const { clientWidth, clientHeight } = this.panels[0].canvas;
      this.setView({ ...component, scale: Math.min(clientWidth, clientHeight) / (3 * component.size) });
      return { number: number + 1, of: components.length, cells: component.cells };
    }

    reportPointer(position) {
      const { slide } = this;
      if (!slide || !position) return this.onPointer(null);
      const [x, y] = position;
      if (x < 0 || y < 0 || x >= slide.width || y >= slide.height) return this.onPointer(null);
      const cell = slide.heat ? slide.heat.cellAt(x, y) : -1;
      return this.onPointer({
        x: Math.floor(x), y: Math.floor(y), mm: [(x * slide.mpp) / 1000, (y * slide.mpp) / 1000],
        probability: cell < 0 ? null : PROBABILITIES[slide.heat.steps[cell]],
        truth: cell < 0 ? null : LABELS[slide.heat.labels[cell]],
      });
    }
  }

  // Controls of threshold, opacity and colour map. `onThreshold` is called after each change of the threshold.
  class Controls {
    constructor(root, viewer, onThreshold) {
      Object.assign(this, { viewer, onThreshold, operatingPoint: 0.5 });
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

    // Set the operating point of a model and the colour maps, by name: for each the colours of probabilities k / 255.
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
      // Leave the text alone while it is being typed.
      if (document.activeElement !== this.number) this.number.value = threshold;
      this.slider.value = threshold;
      this.viewer.setThreshold(threshold);
      this.onThreshold(threshold);
    }
  }

  function pointerText(at) {
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

  // A confusion matrix as an HTML table; `fill` sets its cells.
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

  return { Heatmap, Viewer, Matrix, Controls, thresholdStep, element, pointerText };
})();
