"""Stage report: a self-contained HTML page on an evaluation and its slides, and a page for each slide."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_pipeline.cohort.sheet import Sheet, load_sheet
from wsi_pipeline.config import ReportRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import Exclude, Options, SheetArg, SnakemakeFolder

if TYPE_CHECKING:
    from wsi_pipeline.report.slide_entries import Json, SlideEntry

log = logging.getLogger(__name__)

# Size of a page without slides: mostly Bokeh.
FIXED_BYTES = 2_000_000
_TABLES = ("slides.csv", "roc.csv", "roc_band.csv", "pr.csv", "froc.csv")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The results folder, and Snakemake's folder `.snakemake` for the commands of the jobs, if any."""

    results: Path
    snakemake: Path | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """The page; a folder of the same name without the suffix holds the pages of the slides."""

    page: Path


def command(
    *,
    sheet: SheetArg,
    results: Annotated[Path, typer.Option(help="The results folder.")],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    output: Annotated[Path, typer.Option(help="HTML page to write.")],
    exclude: Exclude = None,
    state: SnakemakeFolder = Path(".snakemake"),
    options: Options = "{}",
) -> None:
    """Write the report page."""
    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    run(loaded, model, Inputs(results, state), Outputs(output), parse_options(ReportRun, options))


def run(sheet: Sheet, model: str | None, inputs: Inputs, outputs: Outputs, options: ReportRun) -> None:
    """Write the page on the test slides of a model, and for each slide a page with its largest heatmap and picture."""
    import pandas as pd

    from wsi_pipeline.evaluation.summary import headline, read_metrics
    from wsi_pipeline.evaluation.tables import read_table
    from wsi_pipeline.io.atomic import write_text
    from wsi_pipeline.io.layout import Layout
    from wsi_pipeline.plots.colors import heatmap_palettes
    from wsi_pipeline.progress_bar import track
    from wsi_pipeline.report.cohort_checks import findings, patch_counts
    from wsi_pipeline.report.curve_plots import bokeh_resources, curve_plots
    from wsi_pipeline.report.page import embedded_json, note_lines, render, warning_lines
    from wsi_pipeline.report.run_tables import command_rows, settings_rows, training_rows
    from wsi_pipeline.report.slide_entries import SlideEntry, embedded_size, fit_entries, pooled_scores

    layout = Layout(inputs.results, model)
    metrics = read_metrics(layout.evaluation / "metrics.json")
    tables = {name: read_table(layout.evaluation, name, metrics) for name in _TABLES}
    table = pd.read_csv(io.StringIO(tables["slides.csv"]), dtype=str, keep_default_na=False)
    rows, point = table.to_dict("records"), metrics["operating_point"]
    shared = {
        "threshold": 0.5 if point is None else point["threshold"],
        "palettes": heatmap_palettes(),
        "counts": pooled_scores(layout, [row["slide"] for row in rows]),
    }
    slides = [
        SlideEntry.read(layout.of(row["slide"]), row["label"], options.thumbnail_px)
        for row in track(rows, "slides", len(rows))
    ]
    _write_slide_pages(outputs.page, slides, shared, options)
    errors = {row["slide"]: int(row["fp"]) + int(row["fn"]) for row in rows}
    shown = fit_entries(slides, errors, int(options.max_mb * 1e6) - FIXED_BYTES - embedded_size(shared))
    script, plots = curve_plots(tables)
    test_slides = metrics["cohort"]["test_slides"]
    page = render(
        title=options.title,
        warnings=warning_lines(metrics, options.synthetic),
        notes=note_lines(metrics),
        headline=headline(metrics),
        bokeh=bokeh_resources(),
        bokeh_plots=script,
        plots=plots,
        pages=outputs.page.stem,
        shown=len(shown),
        left_out=len(slides) - len(shown),
        data=[embedded_json(one) for one in (shared, *shown)],
        columns=list(table.columns),
        slides=table.to_numpy().tolist(),
        findings=findings(layout.slides, list(sheet)),
        patches=patch_counts(layout.slides, sheet.of_split("train", "validation")),
        provenance=[(key, str(value)) for key, value in metrics["provenance"].items()],
        settings=settings_rows(layout, test_slides),
        training=training_rows(layout.model_json),
        commands=[] if inputs.snakemake is None else command_rows(layout, test_slides, sheet, inputs.snakemake),
    )
    write_text(outputs.page, page)
    log.info("report of %d test slides, %.1f MB", len(table), len(page) / 1e6)


def _write_slide_pages(page: Path, slides: Sequence[SlideEntry], shared: Json, options: ReportRun) -> None:
    """Write the page of each slide into the folder named as the report."""
    from wsi_pipeline.evaluation.summary import SYNTHETIC
    from wsi_pipeline.io.atomic import atomic_output
    from wsi_pipeline.report.page import embedded_json, render

    with atomic_output(page.with_suffix("")) as folder:
        folder.mkdir()
        for slide in slides:
            text = render(
                title=f"{options.title}: {slide.name}",
                warnings=[f"{SYNTHETIC}."] if options.synthetic else [],
                shown=1,
                data=[embedded_json({**shared, "counts": None}), embedded_json(slide.content())],
            )
            (folder / f"{slide.name}.html").write_text(text, encoding="utf-8", newline="\n")
