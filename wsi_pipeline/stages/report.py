"""Stage report: one self-contained HTML page with the figures of an evaluation and its slides."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from bokeh.embed import file_html
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CustomJS, HoverTool, Range1d
from bokeh.models.widgets import DataTable, Div, NumberFormatter, RadioButtonGroup, Select, TableColumn
from bokeh.plotting import figure
from bokeh.resources import INLINE
from PIL import Image as Pillow

from wsi_pipeline.cohort import findings, patch_counts
from wsi_pipeline.config import ReportRun
from wsi_pipeline.figures import BLUE, GREEN, ORANGE, layer_on_picture
from wsi_pipeline.files import write_text
from wsi_pipeline.pictures import Picture, blend, color_heat, paint_labels, truth_outline
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.sheet import Sheet
from wsi_pipeline.store import read_image
from wsi_pipeline.summary import SYNTHETIC, Figures, headline, read_metrics, unread_text

log = logging.getLogger(__name__)

_RANDOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Bokeh's own type hints are skipped, see pyproject.toml.
Element = Any

_PLOT_PX = 380
_SLIDE_PX = 620
# Count, predicted class and true class of each cell of the confusion chart.
_CELLS = (
    ("tn", "normal", "normal"),
    ("fp", "tumour", "normal"),
    ("fn", "normal", "tumour"),
    ("tp", "tumour", "tumour"),
)


def run(
    slides_folder: Path,
    heatmaps_folder: Path,
    confusion_folder: Path,
    evaluation_folder: Path,
    output: Path,
    options: ReportRun,
    sheet: Sheet,
) -> None:
    """Write the page. Folders are those that the earlier stages wrote into, for one model; `sheet` is the cohort."""
    metrics = read_metrics(evaluation_folder / "metrics.json")
    slides = metrics["cohort"]["test_slides"]
    parts: list[Element] = [Div(text=_headline(metrics, options), sizing_mode="stretch_width")]
    parts.append(
        row(
            _curve(evaluation_folder / "roc.csv", "ROC of patches", "false positive rate", "true positive rate", BLUE),
            _curve(evaluation_folder / "pr.csv", "Precision and recall of patches", "recall", "precision", GREEN),
            _curve(
                evaluation_folder / "froc.csv", "FROC of lesions", "false positives per slide", "sensitivity", ORANGE
            ),
            _confusion_chart(metrics),
        )
    )
    if slides:
        views = [_views(s, slides_folder, heatmaps_folder, confusion_folder, options) for s in slides]
        table = pd.read_csv(evaluation_folder / "slides.csv", dtype={"slide": str, "patient": str, "centre": str})
        # A slide with tumour has more to show.
        first = int((table["label"] == "tumor").to_numpy().argmax())
        parts += [Div(text="<h2>Slides</h2>"), _slide_viewer(slides, views, first), _slide_table(table)]
    parts.append(Div(text=_checks(slides_folder, sheet), sizing_mode="stretch_width"))
    parts.append(Div(text=_provenance(metrics), sizing_mode="stretch_width"))
    page = _numbered(file_html(column(*parts, sizing_mode="stretch_width"), INLINE, title=options.title))
    write_text(output, page)
    log.info("report of %d test slides, %.1f MB", len(slides), len(page) / 1e6)


def _numbered(page: str) -> str:
    """The page with numbers in the place of Bokeh's random ids, so that the same results give the same page."""
    ids = dict.fromkeys(_RANDOM_ID.findall(page))
    numbers = {name: f"{number:08d}-0000-4000-8000-000000000000" for number, name in enumerate(ids)}
    return _RANDOM_ID.sub(lambda found: numbers[found[0]], page)


def _headline(metrics: Figures, options: ReportRun) -> str:
    cohort, patch = metrics["cohort"], metrics["patch"]
    warning = f"<p style='color:{ORANGE};font-weight:bold'>{SYNTHETIC}.</p>" if options.synthetic else ""
    if not cohort["complete"]:
        names = escape(", ".join(cohort["missing"]))
        warning += f"<p style='color:{ORANGE};font-weight:bold'>Incomplete: no results of {names}.</p>"
    if cohort["unread_positions"]:
        warning += f"<p style='color:{ORANGE}'>{escape(unread_text(cohort['unread_positions']).capitalize())}.</p>"
    if cohort["excluded"]:
        warning += f"<p>Excluded by the config: {escape(', '.join(cohort['excluded']))}.</p>"
    return (
        f"<h1>{escape(options.title)}</h1>{warning}<p>Cohort {escape(cohort['name'])}: "
        f"{len(cohort['test_slides'])} test slides. Intervals: {escape(patch['interval_method'])}, "
        f"{100 * patch['interval_level']:.0f} %.</p>{_table(headline(metrics))}"
    )


def _curve(path: Path, title: str, x: str, y: str, color: str) -> Element:
    points = pd.read_csv(path, names=["threshold", "x", "y"], header=0)
    known = len(points) > 0
    plot = figure(
        width=_PLOT_PX, height=_PLOT_PX, title=title if known else f"{title}: not computed",
        x_axis_label=x, y_axis_label=y, toolbar_location="above",
    )  # fmt: skip
    plot.y_range = Range1d(start=-0.02, end=1.02)
    if not known:
        return plot
    source = ColumnDataSource(points.to_dict("list"))
    line = plot.line("x", "y", source=source, color=color, line_width=2)
    tips = [("threshold", "@threshold{0.0000}"), (x, "@x{0.0000}"), (y, "@y{0.0000}")]
    plot.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
    return plot


def _confusion_chart(metrics: Figures) -> Element:
    counts, shares = metrics["confusion"]["counts"], metrics["confusion"]["share_of_total"]
    point = metrics["operating_point"]
    title = "Share of patches" + ("" if point is None else f", threshold {point['threshold']:.4g}")
    plot = figure(
        width=_PLOT_PX, height=_PLOT_PX, title=title,
        x_range=["normal", "tumour"], y_range=["tumour", "normal"], x_axis_label="predicted", y_axis_label="true",
        toolbar_location=None, tools="",
    )  # fmt: skip
    for key, x, y in _CELLS:
        share = shares[key] or 0.0
        plot.rect([x], [y], width=1, height=1, fill_color=BLUE, fill_alpha=0.05 + 0.9 * share, line_color="white")
        ink = "white" if share > 0.5 else "black"
        plot.text(
            [x], [y], [f"{share:.4f}\n{counts[key]:,}"], text_align="center", text_baseline="middle", text_color=ink
        )
    plot.grid.visible = False
    return plot


def _views(slide: str, slides: Path, heatmaps: Path, confusion: Path, options: ReportRun) -> dict[str, Any]:
    """The three pictures of a slide as data URIs, and its size in mm."""
    pyramid = Pyramid(slides / slide / "pyramid.ome.zarr")
    picture, mpp = pyramid.thumbnail(options.thumbnail_px)
    truth = read_image(slides / slide / "truth.ome.zarr", pyramid.mpp)
    heat = read_image(heatmaps / f"{slide}.ome.zarr", pyramid.mpp)
    codes = read_image(confusion / f"{slide}.ome.zarr", pyramid.mpp)
    return {
        "truth": data_uri(truth_outline(pyramid, truth.data, truth.mpp, options.thumbnail_px)),
        "heatmap": data_uri(blend(picture, *color_heat(layer_on_picture(heat, picture, mpp)))),
        "errors": data_uri(blend(picture, *paint_labels(layer_on_picture(codes, picture, mpp)))),
        "width": picture.shape[1] * mpp / 1000,
        "height": picture.shape[0] * mpp / 1000,
    }


def data_uri(picture: Picture) -> str:
    """A picture as a JPEG data URI."""
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _slide_viewer(slides: Sequence[str], views: Sequence[dict[str, Any]], start: int) -> Element:
    """Two linked panels: truth on the left, heatmap or errors on the right."""
    first = views[start]
    shown = ColumnDataSource(
        {"left": [first["truth"]], "right": [first["heatmap"]], "width": [first["width"]], "height": [first["height"]]}
    )
    extent = max(first["width"], first["height"])
    x_range, y_range = Range1d(start=0, end=extent), Range1d(start=extent, end=0)
    panels = []
    for key, title in (("left", "Truth: tumour red, normal inside tumour green"), ("right", "Tumour probability")):
        panel = figure(
            width=_SLIDE_PX, height=_SLIDE_PX, x_range=x_range, y_range=y_range, title=title,
            x_axis_label="mm", y_axis_label="mm", tools="pan,wheel_zoom,box_zoom,reset", active_scroll="wheel_zoom",
        )  # fmt: skip
        panel.image_url(url=key, x=0, y=0, w="width", h="height", anchor="top_left", source=shown)
        panel.grid.visible = False
        panels.append(panel)
    select = Select(title="Slide", value=slides[start], options=list(slides), width=300)
    layer = RadioButtonGroup(labels=["Heatmap", "Errors: TP red, FP cyan, FN yellow"], active=0)
    change = CustomJS(
        args={
            "views": dict(zip(slides, views, strict=True)), "shown": shown, "select": select, "layer": layer,
            "title": panels[1].title, "x": x_range, "y": y_range,
        },
        code="""
        const view = views instanceof Map ? views.get(select.value) : views[select.value];
        const of = (key) => view instanceof Map ? view.get(key) : view[key];
        const errors = layer.active == 1;
        const extent = Math.max(of("width"), of("height"));
        const moved = shown.data["left"][0] != of("truth");
        shown.data = {left: [of("truth")], right: [of(errors ? "errors" : "heatmap")],
                      width: [of("width")], height: [of("height")]};
        title.text = errors ? "Errors: TP red, FP cyan, FN yellow" : "Tumour probability";
        if (moved) { x.setv({start: 0, end: extent}); y.setv({start: extent, end: 0}); }
        """,
    )  # fmt: skip
    select.js_on_change("value", change)
    layer.js_on_change("active", change)
    return column(row(select, layer), row(*panels))


def _slide_table(table: pd.DataFrame) -> Element:
    numbers = NumberFormatter(format="0.0000", nan_format="-")
    decimals = {"score": {"formatter": numbers}, "auc": {"formatter": numbers}}
    widths = {"slide": 220, "patient": 160}
    shown = [
        TableColumn(field=name, title=name, width=widths.get(name, 70), **decimals.get(name, {}))
        for name in table.columns
    ]
    height = min(500, 40 + 26 * len(table))
    source = ColumnDataSource(table.to_dict("list"))
    return DataTable(source=source, columns=shown, width=2 * _SLIDE_PX, height=height, index_position=None)


def _checks(slides_folder: Path, sheet: Sheet) -> str:
    found = findings(slides_folder, list(sheet))
    text = "<h2>Data checks</h2>" + (_table(found) if found else "<p>No slide stands out.</p>")
    counts = patch_counts(slides_folder, sheet.of_split("train", "validation"))
    if counts:
        head = ("slide", "normal candidates", "normal drawn", "tumour candidates", "tumour drawn")
        text += f"<h2>Training and validation patches</h2>{_table([head, *counts])}"
    return text


def _provenance(metrics: Figures) -> str:
    return f"<h2>Provenance</h2>{_table([(k, str(v)) for k, v in metrics['provenance'].items()])}"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of text as an HTML table, the first cell of each as its head."""
    pad = "style='text-align:left;padding-right:2em'"
    lines = [
        f"<tr><th {pad}>{escape(head)}</th>" + "".join(f"<td {pad}>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for head, *cells in rows
    ]
    return f"<table>{''.join(lines)}</table>"
