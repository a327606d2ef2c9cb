"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const state = { results: null, slide: null, requests: 0, saveTimer: 0 };
  const matrix = new wsi.Matrix($("matrix"), "Patches of this slide");
  const viewer = new wsi.Viewer($("panels"), {
    onPointer: (at) => { $("pointed").textContent = wsi.pointerText(at); },
    onMove: (view) => saveView(view),
    onError: (error) => { $("missing").textContent = error.message; },
  });
  const controls = new wsi.Controls($("controls"), viewer, () => {
    matrix.fill(viewer.slide?.heat ? viewer.slide.heat.counts() : null);
  });
  // For tests and the browser's console.
  window.viewer = viewer;

  async function json(path) {
    return (await fetched(path)).json();
  }

  async function fetched(path) {
    const answer = await fetch(path);
    if (answer.ok) return answer;
    const content = answer.headers.get("Content-Type")?.startsWith("application/json") ? await answer.json() : {};
    throw new Error(content.error ?? `${path}: ${answer.status}`);
  }

  const ofModel = () => (state.results.model === null ? "" : `?model=${encodeURIComponent(state.results.model)}`);

  async function load(model) {
    state.results = await json(`results${model ? `?model=${encodeURIComponent(model)}` : ""}`);
    const { results } = state;
    document.title = results.title;
    $("title").textContent = results.title;
    $("about").textContent = [
      results.cohort && `Cohort ${results.cohort}`, `${results.slides.length} slides`,
      ...results.headline.slice(0, 3).map(([name, value]) => `${name} ${value}`),
    ].filter(Boolean).join(" · ");
    const unfinished = results.slides.filter((slide) => slide.missing.length).length;
    $("warning").textContent = [
      results.synthetic ? "Synthetic slides, drawn by a program: not tissue." : "",
      unfinished ? `${unfinished} slides are not finished.` : "",
    ].join(" ");
    $("model").replaceChildren(...results.models.map((name) => new Option(name, name, false, name === results.model)));
    $("model").parentElement.hidden = results.models.length < 2;
    controls.show(results.threshold, results.palettes);
    list();
  }

  function list() {
    const wanted = $("search").value.toLowerCase();
    $("slides").replaceChildren(...state.results.slides
      .filter((slide) => `${slide.name} ${slide.split} ${slide.label}`.toLowerCase().includes(wanted))
      .map((slide) => {
        const item = wsi.element("li"), button = wsi.element("button", "", item, slide.name);
        const facts = [slide.split, slide.label, slide.missing.length && `without ${slide.missing.join(", ")}`];
        wsi.element("small", "", button, facts.filter(Boolean).join(" · "));
        button.dataset.slide = slide.name;
        button.setAttribute("aria-current", String(slide.name === state.slide));
        button.addEventListener("click", () => open(slide.name));
        return item;
      }));
  }

  async function open(name, view) {
    const request = ++state.requests;
    state.slide = name;
    for (const button of $("slides").querySelectorAll("button"))
      button.setAttribute("aria-current", String(button.dataset.slide === name));
    $("slides").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
    $("jumped").textContent = "";
    try {
      const path = encodeURIComponent(name), found = await json(`slides/${path}${ofModel()}`);
      const heat = found.heat && await fetchHeat(path, found.heat);
      // Discard the answer if another slide has been chosen in the meantime.
      if (request !== state.requests) return;
      // Stages that do not run for this split are not missing.
      const expected = state.results.slides.find((slide) => slide.name === name)?.expected ?? [];
      const missing = expected.filter((stage) => !found.done[stage]);
      $("missing").textContent = missing.length ? `${name} has no ${missing.join(", ")} yet.` : "";
      if (!found.levels.length) { viewer.close(); matrix.fill(null); return; }
      viewer.open({ ...found, heat, picture: (...where) => picture(path, found.versions, ...where) });
      if (view) viewer.setView(view);
      controls.set(controls.threshold);
    } catch (error) {
      if (request !== state.requests) return;
      viewer.close();
      matrix.fill(null);
      $("missing").textContent = error.message;
    }
  }

  async function fetchHeat(path, grid) {
    const content = await (await fetched(`heat/${path}${ofModel()}`)).arrayBuffer(), cells = grid.columns * grid.rows;
    return new wsi.Heatmap(
      grid, new Uint16Array(content, 0, cells), new Uint8Array(content, 2 * cells, cells));
  }

  async function picture(path, versions, layer, level, column, row) {
    const [folder, stage] = { slide: ["tiles", "convert"], tissue: ["tissue", "tissue"], truth: ["truth", "truth"] }[layer];
    if (!versions[stage]) return null;
    const answer = await fetched(`${folder}/${path}/${level}/${column}/${row}?v=${versions[stage]}`);
    return answer.status === 204 ? null : createImageBitmap(await answer.blob());
  }

  // Keep slide and view in the URL, for bookmarks and links. Delayed: browsers limit the rate of history changes.
  function saveView({ x, y, scale }) {
    clearTimeout(state.saveTimer);
    state.saveTimer = setTimeout(() => {
      if (state.slide === null) return;
      const where = [x.toFixed(0), y.toFixed(0), scale.toPrecision(4)].join("/");
      history.replaceState(null, "", `#${encodeURIComponent(state.slide)}/${where}`);
    }, 300);
  }

  function savedView() {
    const [name, ...numbers] = location.hash.slice(1).split("/");
    const [x, y, scale] = numbers.map(Number);
    const view = [x, y, scale].every(Number.isFinite) && scale > 0 ? { x, y, scale } : undefined;
    try { return { name: decodeURIComponent(name), view }; } catch { return { name: "", view: undefined }; }
  }

  function stepSlide(by) {
    const names = [...$("slides").querySelectorAll("button")].map((button) => button.dataset.slide);
    if (!names.length) return;
    const at = names.indexOf(state.slide);
    open(names[at < 0 ? 0 : (at + by + names.length) % names.length]);
  }

  function jump(kind, by) {
    const what = { fp: "false positive", fn: "missed tumour" }[kind], found = viewer.jump(kind, by);
    $("jumped").textContent = found
      ? `${what} ${found.number} of ${found.of}: ${found.cells} ${found.cells === 1 ? "patch" : "patches"}`
      : `no ${what} at this threshold`;
  }

  const toggle = (layer) => {
    const panel = viewer.panels[1];
    panel.show(layer, !panel.layers.has(layer));
  };
  const KEYS = {
    n: () => stepSlide(1), p: () => stepSlide(-1),
    f: () => jump("fp", 1), F: () => jump("fp", -1), m: () => jump("fn", 1), M: () => jump("fn", -1),
    0: () => viewer.slide && viewer.fit(), "+": () => viewer.zoom(1.5), "=": () => viewer.zoom(1.5), "-": () => viewer.zoom(1 / 1.5),
    ArrowLeft: () => viewer.moveBy(-80, 0), ArrowRight: () => viewer.moveBy(80, 0),
    ArrowUp: () => viewer.moveBy(0, -80), ArrowDown: () => viewer.moveBy(0, 80),
    t: () => toggle("truth"), h: () => toggle("heatmap"), e: () => toggle("errors"), d: () => toggle("detections"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('select, [type="number"], [type="search"]')) return;
    if (event.target.matches('[type="range"]') && event.key.startsWith("Arrow")) return;
    const action = KEYS[event.key];
    if (action) { event.preventDefault(); action(); }
  });

  $("search").addEventListener("input", list);
  $("model").addEventListener("change", async () => { await load($("model").value); if (state.slide) open(state.slide, viewer.view); });
  window.addEventListener("hashchange", () => {
    const { name, view } = savedView();
    if (name === state.slide) { if (view) viewer.setView(view); } else if (name) open(name, view);
  });

  load().then(() => {
    const { name, view } = savedView(), { slides } = state.results;
    if (name) return open(name, view);
    // Start with a finished test slide with tumour: it shows the most layers.
    const rank = (slide) => 2 * slide.missing.length - Number(slide.label === "tumor") + 4 * Number(slide.split !== "test");
    const [first] = [...slides].sort((a, b) => rank(a) - rank(b));
    return first && open(first.name);
  }).catch((error) => { $("warning").textContent = error.message; });
})();
