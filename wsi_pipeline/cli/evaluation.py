"""The commands of the stages that judge predictions; heavy libraries are imported inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.stages.arguments import (
    Calibration,
    DetectionsFolder,
    Exclude,
    FigureArg,
    Geojson,
    HeatmapArg,
    HeatmapReceipt,
    Options,
    PyramidArg,
    Receipt,
    Rows,
    ScoresFolder,
    SheetArg,
    Slide,
    State,
    Store,
    Synthetic,
    TruthArg,
)

app = typer.Typer()


@app.command()
def scores(
    truth: TruthArg,
    truth_receipt: Annotated[Path, typer.Option(help="The truth's receipt.")],
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceipt,
    slide: Slide,
    counts: Annotated[Path, typer.Option(help="Table of score counts (Parquet) to write.")],
    receipt: Receipt,
    options: Options = "{}",
) -> None:
    """Count the scores of a heatmap by truth."""
    from wsi_pipeline.config import ScoresRun
    from wsi_pipeline.config.loading import parse_options
    from wsi_pipeline.stages import scores as stage

    parsed = parse_options(ScoresRun, options)
    stage.run(slide, truth, truth_receipt, heatmap, heatmap_receipt, counts, receipt, parsed)


@app.command()
def detect(
    truth: TruthArg,
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceipt,
    slide: Slide,
    detections: Annotated[Path, typer.Option(help="CSV of confidence,x,y to write.")],
    geojson: Geojson,
    receipt: Receipt,
    options: Options = "{}",
) -> None:
    """Find detections on a heatmap and the lesions that they hit."""
    from wsi_pipeline.config import DetectRun
    from wsi_pipeline.config.loading import parse_options
    from wsi_pipeline.stages import detect as stage

    parsed = parse_options(DetectRun, options)
    stage.run(slide, truth, heatmap, heatmap_receipt, detections, geojson, receipt, parsed)


@app.command()
def calibrate(
    sheet: SheetArg,
    scores: ScoresFolder,
    detections: DetectionsFolder,
    receipt: Receipt,
    exclude: Exclude = None,
    rows: Rows = None,
    options: Options = "{}",
) -> None:
    """Choose the operating point on the validation slides."""
    from wsi_pipeline.cohort.sheet import load_sheet
    from wsi_pipeline.config import CalibrateRun
    from wsi_pipeline.config.loading import parse_options
    from wsi_pipeline.stages import calibrate as stage

    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    loaded.check_digest(rows, "validation")
    stage.run(loaded, scores, detections, receipt, parse_options(CalibrateRun, options))


@app.command()
def confusion(
    pyramid: PyramidArg,
    truth: TruthArg,
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceipt,
    calibration: Calibration,
    slide: Slide,
    store: Store,
    receipt: Receipt,
    picture: FigureArg,
    geojson: Geojson,
    options: Options = "{}",
    synthetic: Synthetic = False,
) -> None:
    """Compare a heatmap with the truth at the operating point."""
    from wsi_pipeline.config import ConfusionRun
    from wsi_pipeline.config.loading import parse_options
    from wsi_pipeline.stages import confusion as stage

    parsed = parse_options(ConfusionRun, options)
    stage.run(
        slide,
        pyramid,
        truth,
        heatmap,
        heatmap_receipt,
        calibration,
        store,
        receipt,
        picture,
        geojson,
        parsed,
        synthetic=synthetic,
    )


@app.command()
def evaluate(
    sheet: SheetArg,
    scores: ScoresFolder,
    confusion: Annotated[Path, typer.Option(help="Folder that the stage confusion wrote into.")],
    detections: DetectionsFolder,
    calibration: Calibration,
    output: Annotated[Path, typer.Option(help="Folder to write metrics, tables and figures into.")],
    exclude: Exclude = None,
    rows: Rows = None,
    allow_missing: Annotated[bool, typer.Option(help="End well although test slides lack results.")] = False,
    options: Options = "{}",
) -> None:
    """Compute all figures over the test slides."""
    from wsi_pipeline.cohort.sheet import load_sheet
    from wsi_pipeline.config import EvaluateRun
    from wsi_pipeline.config.loading import parse_options
    from wsi_pipeline.stages import evaluate as stage

    left_out = tuple(exclude or ())
    loaded = load_sheet(sheet, exclude=left_out, check_files=False)
    loaded.check_digest(rows)
    parsed = parse_options(EvaluateRun, options)
    folders = stage.Folders(scores, confusion, detections)
    stage.run(loaded, left_out, folders, calibration, output, parsed, allow_missing=allow_missing)


@app.command()
def report(
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
    from wsi_pipeline.config import ReportRun
    from wsi_pipeline.config.loading import parse_options
    from wsi_pipeline.stages import report as stage

    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    stage.run(results, model, output, parse_options(ReportRun, options), loaded, state)
