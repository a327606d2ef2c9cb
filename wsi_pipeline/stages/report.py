"""Stage report: a self-contained HTML page with the figures of an evaluation and its slides, and one of each slide."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Annotated, Any, Self

import numpy as np
import pandas as pd
import typer
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment
from PIL import Image as Pillow

from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import ReportRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
from wsi_pipeline.evaluation.summary import SYNTHETIC, Figures, headline, read_metrics, unread_text
from wsi_pipeline.evaluation.tables import read_table
from wsi_pipeline.geometry import Box
from wsi_pipeline.io.atomic import atomic_output, write_text
from wsi_pipeline.io.layout import SLIDE_STAGES, STAGES, Layout, SlideLayout
from wsi_pipeline.io.receipts import read_receipt
from wsi_pipeline.metrics.steps import STEPS
from wsi_pipeline.plots.colors import RgbImage, heatmap_palettes
from wsi_pipeline.plots.figures import BLUE, GREEN, ORANGE
from wsi_pipeline.plots.overlays import outline_png, tissue_overlay, truth_overlay
from wsi_pipeline.progress_bar import track
from wsi_pipeline.provenance.snakemake_metadata import job_of_output
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.receipts.base import read_receipt as read_typed
from wsi_pipeline.receipts.evaluation import ScoresReceipt
from wsi_pipeline.report.cohort_checks import findings, patch_counts
from wsi_pipeline.report.slide_data import HeatGrid, heat_grid, read_detections
from wsi_pipeline.stages.arguments import Exclude, Options, SheetArg, State

log = logging.getLogger(__name__)

_RANDOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Bokeh's own type hints are skipped, see pyproject.toml.
Element = Any

_PLOT_PX = 380
# Of an evaluation.
_TABLES = ("slides.csv", "roc.csv", "roc_band.csv", "pr.csv", "froc.csv")
# Of a model's receipt.
_OF_MODEL = (
    "architecture",
    "mpp",
    "size_px",
    "normalisation",
    "stain_normalisation",
    "device",
    "steps",
    "kept_step",
    "training",
    "validation",
    "versions",
)
# What a page without slides has: mostly Bokeh.
FIXED_BYTES = 2_000_000
# Tried one after the other until the page is small enough: shares of the size of pictures; every n-th row and column.
_SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)
_LEAST_PX = 128
_EVERY = (1, 2, 3, 4, 6, 8)


def command(
    sheet: SheetArg,
    results: Annotated[Path, typer.Option(help="The results folder.")],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    output: Annotated[Path, typer.Option(help="HTML page to write.")],
    exclude: Exclude = None,
    state: State = Path(".snakemake"),
    options: Options = "{}",
) -> None:
    """Write the report page."""
    from wsi_pipeline.cohort.sheet import load_sheet

    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    run(results, model, output, parse_options(ReportRun, options), loaded, state)


def run(
    results: Path, model: str | None, output: Path, options: ReportRun, sheet: Sheet, state: Path | None = None
) -> None:
    """Write the page on the test slides of a model in a results folder; `sheet` is the cohort.

    `state` is Snakemake's folder `.snakemake`, from which the commands are taken.
    In a folder beside it, of the page's name, each slide has a page with its whole map and a picture of full size.
    """
    layout = Layout(results, model)
    metrics = read_metrics(layout.evaluation / "metrics.json")
    tables = {name: io.StringIO(read_table(layout.evaluation, name, metrics)) for name in _TABLES}
    table = pd.read_csv(tables["slides.csv"], dtype=str, keep_default_na=False)
    point, rows = metrics["operating_point"], table.to_dict("records")
    shared = {
        "threshold": 0.5 if point is None else point["threshold"],
        "palettes": heatmap_palettes(),
        "counts": _pooled(layout, [row["slide"] for row in rows]),
    }
    slides = [
        _Slide.of(layout.of(row["slide"]), row["label"], options.thumbnail_px)
        for row in track(rows, "slides", len(rows))
    ]
    _write_slide_pages(output.with_suffix(""), slides, shared, options)
    errors = {row["slide"]: int(row["fp"]) + int(row["fn"]) for row in rows}
    shown = _chosen(slides, errors, int(options.max_mb * 1e6) - FIXED_BYTES - _size(shared))
    curves = (
        _curve(
            tables["roc.csv"],
            "ROC of patches",
            "false positive rate",
            "true positive rate",
            BLUE,
            tables["roc_band.csv"],
        ),
        _curve(tables["pr.csv"], "Precision and recall of patches", "recall", "precision", GREEN),
        _curve(tables["froc.csv"], "FROC of lesions", "false positives per slide", "sensitivity", ORANGE),
    )
    script, plots = components(curves)
    page = _rendered(
        title=options.title,
        warnings=_warnings(metrics, options),
        notes=_notes(metrics),
        headline=headline(metrics),
        bokeh=Resources(mode="inline", components=["bokeh"]).render(),
        bokeh_plots=script,
        plots=plots,
        pages=output.stem,
        shown=len(shown),
        left_out=len(slides) - len(shown),
        data=[_as_script(one) for one in (shared, *shown)],
        columns=list(table.columns),
        slides=table.to_numpy().tolist(),
        findings=findings(layout.slides, list(sheet)),
        patches=_patches(layout, sheet),
        provenance=[(key, str(value)) for key, value in metrics["provenance"].items()],
        settings=_settings(layout, metrics["cohort"]["test_slides"]),
        training=_training(layout.model_json),
        commands=_commands(layout, metrics["cohort"]["test_slides"], sheet, state),
    )
    write_text(output, _numbered(page) + "\n")
    log.info("report of %d test slides, %.1f MB", len(table), len(page) / 1e6)


def _rendered(**content: Any) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_static("report.html")).render(
        styles=_static("panels.css") + _static("report.css"),
        scripts=_static("panels.js") + _static("report.js"),
        **content,
    )


def _write_slide_pages(folder: Path, slides: Sequence[_Slide], shared: dict[str, Any], options: ReportRun) -> None:
    with atomic_output(folder) as partial:
        partial.mkdir()
        for slide in slides:
            name = slide.facts["name"]
            page = _rendered(
                title=f"{options.title}: {name}",
                warnings=[f"{SYNTHETIC}."] if options.synthetic else [],
                shown=1,
                data=[_as_script({**shared, "counts": None}), _as_script(slide.content())],
            )
            (partial / f"{name}.html").write_text(page + "\n", encoding="utf-8", newline="\n")


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


def _curve(table: IO[str], title: str, x: str, y: str, color: str, band: IO[str] | None = None) -> Element:
    points = pd.read_csv(table, names=["threshold", "x", "y"], header=0)
    known = len(points) > 0
    plot = figure(
        width=_PLOT_PX,
        height=_PLOT_PX,
        title=title if known else f"{title}: not computed",
        x_axis_label=x,
        y_axis_label=y,
        toolbar_location="above",
    )
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


@dataclass(frozen=True, slots=True)
class _Slide:
    """What the pages' script takes of a slide, in parts that come in several sizes, the largest first."""

    facts: dict[str, Any]
    maps: list[dict[str, Any]]
    pictures: list[dict[str, Any]]

    @classmethod
    def of(cls, places: SlideLayout, label: str, longest_px: int) -> Self:
        facts = {
            "name": places.slide,
            "label": label,
            "detections": read_detections(places.model_file("detect", ".csv"), places.receipt("detect")),
        }
        confusion = places.model_file("confusion", ".ome.zarr")
        grid = heat_grid(places.model_file("heatmap", ".ome.zarr"), places.receipt("heatmap"), confusion)
        return cls(facts, [{"heat": _map(grid, every)} for every in _EVERY], _pictures(places, longest_px))

    def content(self, map_size: int = 0, picture_size: int = 0) -> dict[str, Any]:
        return {**self.facts, **self.maps[map_size], **self.pictures[picture_size]}


def _chosen(slides: Sequence[_Slide], errors: Mapping[str, int], room: int) -> list[dict[str, Any]]:
    """What fits into `room` bytes: coarser maps and smaller pictures rather than slides without any.

    Maps have half of the room at most. Slides with the fewest errors are left out first.
    """
    maps = _first_fitting([[slide.maps[k] for slide in slides] for k in range(len(_EVERY))], room // 2)
    room -= sum(_size(slide.maps[maps]) for slide in slides)
    pictures = _first_fitting([[slide.pictures[k] for slide in slides] for k in range(len(_SHARES))], room)
    found = {slide.facts["name"]: slide.content(maps, pictures) for slide in slides}
    used = sum(_size(slide.pictures[pictures]) for slide in slides)
    for name in sorted(found, key=lambda name: errors[name]):
        if used <= room:
            break
        used -= _size(found.pop(name))
    return list(found.values())


def _first_fitting(parts: Sequence[Sequence[Any]], room: int) -> int:
    """Number of the first parts that fit into so many bytes, else of the last."""
    fitting = (k for k, part in enumerate(parts) if sum(map(_size, part)) <= room)
    return next(fitting, len(parts) - 1)


def _size(part: Any) -> int:
    return len(_as_script(part))


def _pooled(layout: Layout, slides: Sequence[str]) -> dict[str, Any]:
    """How many normal and tumour patches of all slides have each score, exactly: uint32 scores, normal, tumour."""
    sums = np.zeros((2, STEPS + 1), np.int64)
    for slide in slides:
        places = layout.of(slide)
        receipt = read_typed(places.receipt("scores"), ScoresReceipt)
        counts = ScoreHistogram.read(places.model_file("scores", ".parquet"), receipt)
        sums[:, counts.steps] += counts.normal, counts.tumor
    scores = np.flatnonzero(sums.any(axis=0))
    return {"scores": len(scores), "data": _deflated(np.stack((scores, *sums[:, scores])).astype("<u4").tobytes())}


def _map(grid: HeatGrid, every: int) -> dict[str, Any]:
    taken = grid.every(every)
    return {**taken.geometry(), "every": every, "data": _deflated(taken.packed())}


def _deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _pictures(places: SlideLayout, longest_px: int) -> list[dict[str, Any]]:
    """A slide's picture and the outlines on it as data URIs, and their geometry, in several sizes."""
    pyramid = Pyramid(places.pyramid())
    layers = {
        "tissue": tissue_overlay(read_image(places.slide_file("tissue.ome.zarr"), pyramid.mpp)),
        "truth": truth_overlay(read_image(places.slide_file("truth.ome.zarr"), pyramid.mpp)),
    }
    found = []
    for share in _SHARES:
        picture, mpp = pyramid.thumbnail(max(_LEAST_PX, int(share * longest_px)))
        box = Box(0, 0, picture.shape[1], picture.shape[0])
        found.append(
            {
                "mpp": pyramid.mpp,
                "width": pyramid.size.width,
                "height": pyramid.size.height,
                "pictureSize": [box.width, box.height],
                "slide": _data_uri("jpeg", _jpeg(picture)),
                **{name: _data_uri("png", outline_png(layer, box, mpp)) for name, layer in layers.items()},
            }
        )
    return found


def _jpeg(picture: RgbImage) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, format="JPEG", quality=82)
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes | None) -> str | None:
    return None if content is None else f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _patches(layout: Layout, sheet: Sheet) -> list[tuple[str, ...]]:
    counts = patch_counts(layout.slides, sheet.of_split("train", "validation"))
    head = ("slide", "normal candidates", "normal drawn", "tumour candidates", "tumour drawn")
    return [head, *counts] if counts else []


def _settings(layout: Layout, slides: Sequence[str]) -> list[tuple[str, str]]:
    """Options of the stages that judge, and of those before them, from the receipts of the first test slide."""
    found = []
    for stage in STAGES if slides else ():
        receipt = layout.of(slides[0]).receipt(stage)
        options = read_receipt(receipt, stage).get("options", {}) if receipt.is_file() else {}
        found += [(f"{stage}: {key}", _said(value)) for key, value in sorted(options.items())]
    return found


def _commands(layout: Layout, slides: Sequence[str], sheet: Sheet, state: Path | None) -> list[tuple[str, str]]:
    """The command of each rule: of a slide's rules that of the first test slide, of patches of the first drawn from."""
    if state is None:
        return []
    test, drawn = ([layout.of(slide) for slide in names[:1]] for names in (slides, sheet.of_split("train")))
    outputs = [
        *(one.receipt(stage) for one in test for stage in SLIDE_STAGES),
        *(one.slide_file("patches.json") for one in drawn),
        layout.model_json,
        *(one.receipt(stage) for one in test for stage in STAGES if stage not in SLIDE_STAGES),
        layout.calibration,
        layout.evaluation / "metrics.json",
    ]
    jobs = (job_of_output(state, str(output)) for output in outputs)
    return [(job.rule, job.command) for job in jobs if job is not None]


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
