"use strict";

(async () => {
  const $ = (id) => document.getElementById(id);
  const table = $("slides");
  if (table) makeSortable(table);
  const [shared, ...slides] = [...document.querySelectorAll("script.data")].map((one) => JSON.parse(one.textContent));
  if (!slides.length) return;
  const byName = new Map(slides.map((slide) => [slide.name, slide]));
  const state = { slide: null, request: 0 };
  const cohortMatrix = shared.counts && new wsi.Matrix($("cohort-matrix"), "Patches of all test slides");
  const slideMatrix = new wsi.Matrix($("slide-matrix"), "Patches of this slide");
  const viewer = new wsi.Viewer($("panels"), {
    right: ["errors"],
    onPointer: (at) => { $("pointed").textContent = wsi.pointerText(at); },
  });
  const counts = shared.counts && await cumulativeCounts(shared.counts);
  const controls = new wsi.Controls($("controls"), viewer, (threshold) => {
    cohortMatrix?.fill(countsAt(threshold));
    slideMatrix.fill(viewer.slide?.heat ? viewer.slide.heat.counts() : null);
  });
  // For tests and the browser's console.
  window.viewer = viewer;

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // Cumulative histogram: for each distinct score, ascending, the number of normal and tumour patches with a lower one.
  async function cumulativeCounts({ scores, data }) {
    const content = await inflate(data), part = (k) => new Uint32Array(content, 4 * k * scores, scores);
    const sums = [part(1), part(2)].map((values) => {
      const found = new Float64Array(scores + 1);
      values.forEach((value, k) => { found[k + 1] = found[k] + value; });
      return found;
    });
    return { steps: part(0), normal: sums[0], tumor: sums[1] };
  }

  function countsAt(threshold) {
    const cut = wsi.thresholdStep(threshold), { steps, normal, tumor } = counts, end = steps.length;
    let low = 0, high = end;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < cut) low = middle + 1; else high = middle;
    }
    return { tn: normal[low], fp: normal[end] - normal[low], fn: tumor[low], tp: tumor[end] - tumor[low] };
  }

  async function image(uri) {
    if (!uri) return null;
    const made = new Image();
    made.src = uri;
    await made.decode();
    return made;
  }

  async function open(name) {
    const request = ++state.request, slide = byName.get(name), { heat } = slide;
    const content = await inflate(heat.data), cells = heat.columns * heat.rows;
    if (request !== state.request) return;
    state.slide = slide;
    if ($("slide")) $("slide").value = name;
    for (const row of table?.tBodies[0].rows ?? []) row.setAttribute("aria-current", String(row.dataset.slide === name));
    const [width, height] = slide.pictureSize;
    viewer.open({
      ...slide,
      levels: [{ width, height, tileWidth: width, tileHeight: height, scale: slide.width / width }],
      picture: (layer) => image(slide[layer]),
      heat: new wsi.Heatmap(heat, new Uint16Array(content, 0, cells), new Uint8Array(content, 2 * cells, cells)),
    });
    slideMatrix.title(heat.every === 1 ? "Patches of this slide" : `Patches of this slide, one of ${heat.every ** 2}`);
    controls.set(controls.threshold);
  }

  function makeSortable(slidesTable) {
    const heads = [...slidesTable.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!column) return;
      head.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const text = (row) => row.cells[column].textContent;
        const rows = [...slidesTable.tBodies[0].rows], known = rows.filter((row) => text(row) !== "");
        const compare = known.every((row) => !Number.isNaN(Number(text(row))))
          ? (a, b) => Number(text(a)) - Number(text(b)) : (a, b) => text(a).localeCompare(text(b));
        // Rows without a value stay at the end.
        const sorted = known.sort((a, b) => (up ? 1 : -1) * compare(a, b));
        slidesTable.tBodies[0].append(...sorted, ...rows.filter((row) => text(row) === ""));
      });
    });
  }

  for (const { name } of slides) $("slide")?.add(new Option(name, name));
  for (const row of table?.tBodies[0].rows ?? []) {
    const slide = byName.get(row.dataset.slide);
    if (!slide) continue;
    const thumbnail = wsi.element("img", "", row.cells[0]);
    thumbnail.src = slide.slide;
    thumbnail.alt = "";
    row.addEventListener("click", (event) => {
      if (event.target.matches("a")) return;
      open(slide.name);
      $("panels").scrollIntoView({ block: "center" });
    });
  }
  $("slide")?.addEventListener("change", () => open($("slide").value));
  controls.show(shared.threshold, shared.palettes);
  // Start with a slide with tumour: it shows the most layers.
  await open((slides.find((slide) => slide.label === "tumor") ?? slides[0]).name);
})();
