"""Stage report: one self-contained HTML page with the figures of an evaluation and its slides."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment
from PIL import Image as Pillow

from wsi_pipeline.cohort import findings, patch_counts
from wsi_pipeline.config import ReportRun
from wsi_pipeline.figures import BLUE, GREEN, ORANGE
from wsi_pipeline.files import write_text
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout, SlideLayout
from wsi_pipeline.metrics.steps import STEPS
from wsi_pipeline.overlays import outlines, tissue_overlay, truth_overlay
from wsi_pipeline.pictures import Picture, heat_palette
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.receipts import read_receipt
from wsi_pipeline.score_counts import ScoreCounts
from wsi_pipeline.sheet import Sheet
from wsi_pipeline.slide_views import HeatGrid, heat_grid, read_detections
from wsi_pipeline.store import read_image
from wsi_pipeline.summary import SYNTHETIC, Figures, headline, read_metrics, unread_text

log = logging.getLogger(__name__)

_RANDOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Bokeh's own type hints are skipped, see pyproject.toml.
Element = Any

_PLOT_PX = 380
# Of a model's receipt.
_OF_MODEL = (
    "architecture", "mpp", "size_px", "normalisation", "stain_normalisation", "device", "steps", "kept_step",
    "training", "validation", "versions",
)  # fmt: skip
# What a page without slides has: mostly Bokeh.
FIXED_BYTES = 2_000_000
# Tried one after the other until the page is small enough: shares of the size of pictures, rows and columns of maps.
_SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)
_LEAST_PX = 128
_EVERY = (1, 2, 3, 4, 6, 8)


def run(results: Path, model: str | None, output: Path, options: ReportRun, sheet: Sheet) -> None:
    """Write the page on the test slides of a model in a results folder; `sheet` is the cohort."""
    layout = Layout(results, model)
    metrics = read_metrics(layout.evaluation / "metrics.json")
    table = pd.read_csv(layout.evaluation / "slides.csv", dtype=str, keep_default_na=False)
    data, left_out = _data(layout, metrics, table, options)
    curves = (
        _curve(
            layout.evaluation / "roc.csv",
            "ROC of patches",
            "false positive rate",
            "true positive rate",
            BLUE,
            layout.evaluation / "roc_band.csv",
        ),
        _curve(layout.evaluation / "pr.csv", "Precision and recall of patches", "recall", "precision", GREEN),
        _curve(layout.evaluation / "froc.csv", "FROC of lesions", "false positives per slide", "sensitivity", ORANGE),
    )
    script, plots = components(curves)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_static("report.html")).render(
        title=options.title,
        warnings=_warnings(metrics, options),
        notes=_notes(metrics),
        headline=headline(metrics),
        bokeh=Resources(mode="inline", components=["bokeh"]).render(),
        bokeh_plots=script,
        plots=plots,
        styles=_static("panels.css") + _static("report.css"),
        scripts=_static("panels.js") + _static("report.js"),
        shown=len(data) - 1,
        left_out=left_out,
        data=[_as_script(one) for one in data],
        columns=list(table.columns),
        slides=table.to_numpy().tolist(),
        findings=findings(layout.slides, list(sheet)),
        patches=_patches(layout, sheet),
        provenance=[(key, str(value)) for key, value in metrics["provenance"].items()],
        training=_training(layout.model_json),
    )
    write_text(output, _numbered(page) + "\n")
    log.info("report of %d test slides, %.1f MB", len(table), len(page) / 1e6)


def _static(name: str) -> str:
    return files("wsi_pipeline.view").joinpath("static", name).read_text(encoding="utf-8")


def _numbered(page: str) -> str:
    """The page with numbers in the place of Bokeh's random ids, so that the same results give the same page."""
    ids = dict.fromkeys(_RANDOM_ID.findall(page))
    numbers = {name: f"{number:08d}-0000-4000-8000-000000000000" for number, name in enumerate(ids)}
    return _RANDOM_ID.sub(lambda found: numbers[found[0]], page)


def _as_script(content: Any) -> str:
    """JSON that no name in it can end the script element of."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _warnings(metrics: Figures, options: ReportRun) -> list[str]:
    cohort = metrics["cohort"]
    found = [f"{SYNTHETIC}."] if options.synthetic else []
    if not cohort["complete"]:
        found.append(f"Incomplete: no results of {', '.join(cohort['missing'])}.")
    if cohort["unread_positions"]:
        text = unread_text(cohort["unread_positions"])
        found.append(f"{text[0].upper()}{text[1:]}.")
    return found


def _notes(metrics: Figures) -> list[str]:
    cohort, patch = metrics["cohort"], metrics["patch"]
    about = (
        f"Cohort {cohort['name']}: {len(cohort['test_slides'])} test slides. Intervals: {patch['interval_method']}, "
        f"{100 * patch['interval_level']:.0f} %."
    )
    excluded = [f"Excluded by the config: {', '.join(cohort['excluded'])}."] if cohort["excluded"] else []
    return [about, *excluded]


def _curve(path: Path, title: str, x: str, y: str, color: str, band: Path | None = None) -> Element:
    points = pd.read_csv(path, names=["threshold", "x", "y"], header=0)
    known = len(points) > 0
    plot = figure(
        width=_PLOT_PX, height=_PLOT_PX, title=title if known else f"{title}: not computed",
        x_axis_label=x, y_axis_label=y, toolbar_location="above",
    )  # fmt: skip
    plot.y_range = Range1d(start=-0.02, end=1.02)
    if not known:
        return plot
    if band is not None:
        limits = pd.read_csv(band, names=["x", "low", "high"], header=0)
        plot.varea(
            "x", "low", "high", source=ColumnDataSource(limits.to_dict("list")), fill_color=color, fill_alpha=0.2
        )
    source = ColumnDataSource(points.to_dict("list"))
    line = plot.line("x", "y", source=source, color=color, line_width=2)
    tips = [("threshold", "@threshold{0.0000}"), (x, "@x{0.0000}"), (y, "@y{0.0000}")]
    plot.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
    return plot


def _data(
    layout: Layout, metrics: Figures, table: pd.DataFrame, options: ReportRun
) -> tuple[list[dict[str, Any]], int]:
    """What the page's script takes: of all slides, then of each one shown; and how many slides had no room."""
    point, names = metrics["operating_point"], metrics["cohort"]["test_slides"]
    shared = {
        "threshold": 0.5 if point is None else point["threshold"],
        "palette": heat_palette().tolist(),
        "counts": _pooled(layout, names),
    }
    room = int(options.max_mb * 1e6) - FIXED_BYTES - len(_as_script(shared))
    grids = {name: _grid(layout.of(name)) for name in names}
    # Coarser maps and smaller pictures rather than slides without any.
    maps = _fitting(lambda every: {name: _map(grid, every) for name, grid in grids.items()}, _EVERY, room // 2)
    sizes = [px for px in (options.thumbnail_px * np.array(_SHARES)).astype(int).tolist() if px >= _LEAST_PX]
    left = room - sum(map(_size, maps.values()))
    pictures = _fitting(
        lambda px: {name: _pictures(layout.of(name), px) for name in names}, sizes or [options.thumbnail_px], left
    )
    parts = {name: {**pictures[name], "heat": maps[name]} for name in names}
    facts = table.set_index("slide")
    used = sum(map(_size, parts.values()))
    for name in (facts["fp"].astype(int) + facts["fn"].astype(int)).sort_values(kind="stable").index:
        if used <= room:
            break
        used -= _size(parts.pop(name))
    shown = [
        {
            "name": name,
            "label": facts.at[name, "label"],
            "detections": read_detections(layout.of(name).of_model("detect", ".csv")),
            **part,
        }
        for name, part in parts.items()
    ]
    return [shared, *shown], len(names) - len(shown)


def _fitting(make: Callable[[int], dict[str, Any]], scales: Sequence[int], room: int) -> dict[str, Any]:
    """What `make` makes of the first scale with which it fits into `room` bytes, else of the last."""
    made: dict[str, Any] = {}
    for scale in scales:
        made = make(scale)
        if sum(map(_size, made.values())) <= room:
            break
    return made


def _size(part: Any) -> int:
    return len(_as_script(part))


def _pooled(layout: Layout, slides: Sequence[str]) -> dict[str, Any]:
    """How many normal and tumour patches of all slides have each score, exactly: uint32 scores, normal, tumour."""
    sums = np.zeros((2, STEPS + 1), np.int64)
    for slide in slides:
        counts = ScoreCounts.read(layout.of(slide).of_model("scores", ".parquet"))
        sums[:, counts.steps] += counts.normal, counts.tumor
    scores = np.flatnonzero(sums.any(axis=0))
    return {"scores": len(scores), "data": _deflated(np.stack((scores, *sums[:, scores])).astype("<u4").tobytes())}


def _grid(places: SlideLayout) -> HeatGrid:
    confusion = places.of_model("confusion", ".ome.zarr")
    return heat_grid(places.of_model("heatmap", ".ome.zarr"), places.receipt("heatmap"), confusion)


def _map(grid: HeatGrid, every: int) -> dict[str, Any]:
    taken = grid.every(every)
    return {**taken.geometry(), "every": every, "data": _deflated(taken.packed())}


def _deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _pictures(places: SlideLayout, longest_px: int) -> dict[str, Any]:
    """A slide's picture and the outlines on it as data URIs, and their geometry."""
    pyramid = Pyramid(places.of_slide("pyramid.ome.zarr"))
    picture, mpp = pyramid.thumbnail(longest_px)
    box = Box(0, 0, picture.shape[1], picture.shape[0])
    layers = {
        "tissue": tissue_overlay(read_image(places.of_slide("tissue.ome.zarr"), pyramid.mpp)),
        "truth": truth_overlay(read_image(places.of_slide("truth.ome.zarr"), pyramid.mpp)),
    }
    return {
        "mpp": pyramid.mpp,
        "width": pyramid.size.width,
        "height": pyramid.size.height,
        "pictureSize": [box.width, box.height],
        "slide": _data_uri("jpeg", _jpeg(picture)),
        **{name: _data_uri("png", outlines(layer, box, mpp)) for name, layer in layers.items()},
    }


def _jpeg(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, format="JPEG", quality=82)
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes | None) -> str | None:
    return None if content is None else f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _patches(layout: Layout, sheet: Sheet) -> list[tuple[str, ...]]:
    counts = patch_counts(layout.slides, sheet.of_split("train", "validation"))
    head = ("slide", "normal candidates", "normal drawn", "tumour candidates", "tumour drawn")
    return [head, *counts] if counts else []


def _training(model_json: Path) -> list[tuple[str, str]]:
    """How the model was made; nothing where it came from elsewhere."""
    if not model_json.is_file():
        return []
    model = read_receipt(model_json, "train")
    made = [(key, _said(model[key])) for key in _OF_MODEL if key in model]
    return made + [(key, _said(value)) for key, value in sorted(model.get("options", {}).items())]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items())
    return "none" if value is None else str(value)
