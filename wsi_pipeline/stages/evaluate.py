"""Stage evaluate: all figures of a model on the test slides, each with its n and its interval.

It sums up small files of the slides and reads no heatmap.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cohort.sheet import Sheet, load_sheet
from wsi_pipeline.config import EvaluateRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.errors import IncompleteError
from wsi_pipeline.io.layout import Layout
from wsi_pipeline.stages.arguments import Calibration, DetectionsFolder, Exclude, Options, Rows, ScoresFolder, SheetArg

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Output folders of the stages scores, confusion and detect, and the receipt of the stage calibrate."""

    scores: Path
    confusion: Path
    detections: Path
    calibration: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    """The folder of `metrics.json`, tables and figures."""

    folder: Path


def command(
    *,
    sheet: SheetArg,
    scores: ScoresFolder,
    confusion: Annotated[Path, typer.Option(help="Folder that the stage confusion wrote into.")],
    detections: DetectionsFolder,
    calibration: Calibration,
    output: Annotated[Path, typer.Option(help="Folder to write metrics, tables and figures into.")],
    exclude: Exclude = None,
    rows: Rows = None,
    allow_missing: Annotated[bool, typer.Option(help="Exit with code 0 even if test slides have no results.")] = False,
    results: Annotated[Path | None, typer.Option(help="Results folder, whose receipts are checked first.")] = None,
    expected: Annotated[
        str, typer.Option(help="The options by stage that they must have, and the predicted splits, as JSON.")
    ] = "",
    options: Options = "{}",
) -> None:
    """Compute all figures over the test slides."""
    from wsi_pipeline.evaluation.outdated_results import Expected, check_results, outdated_slides

    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    loaded.check_digest(rows)
    outdated: set[str] = set()
    if results is not None:
        of_this_run = Expected.parse(loaded, Layout(results, scores.name), expected)
        if allow_missing:
            outdated = outdated_slides(of_this_run)
        else:
            check_results(of_this_run)
    inputs = Inputs(scores=scores, confusion=confusion, detections=detections, calibration=calibration)
    run(
        loaded,
        inputs,
        Outputs(output),
        parse_options(EvaluateRun, options),
        outdated=outdated,
        allow_missing=allow_missing,
    )


def run(
    sheet: Sheet,
    inputs: Inputs,
    outputs: Outputs,
    options: EvaluateRun,
    *,
    outdated: Collection[str] = (),
    allow_missing: bool = False,
) -> None:
    """Evaluate the test slides and write metrics, tables and figures. Results of slides in `outdated` are not used.

    Slides that lack results are named in `metrics.json`, and `cohort.complete` is false. Then, after writing, raises
    `IncompleteError`, unless `allow_missing`.
    """
    from wsi_pipeline.evaluation.cohort import cohort_figures, cohort_rows, left_out_figures, provenance_figures
    from wsi_pipeline.evaluation.cohort_metrics import Evaluation
    from wsi_pipeline.evaluation.slide_classification import classify_slides
    from wsi_pipeline.evaluation.slide_results import ResultFolders, load_results
    from wsi_pipeline.evaluation.summary import format_figure
    from wsi_pipeline.evaluation.tables import evaluation_tables, write_tables
    from wsi_pipeline.io.atomic import write_text
    from wsi_pipeline.io.digests import canonical_json
    from wsi_pipeline.plots.evaluation import evaluation_figures
    from wsi_pipeline.plots.figures import save_figure

    folders = ResultFolders(inputs.scores, inputs.confusion, inputs.detections)
    wanted = sheet.of_split("test")
    missing = [slide for slide in wanted if slide in outdated or not folders.complete(slide)]
    if missing:
        log.warning("without results: %s", ", ".join(missing))
    rows = [sheet[slide] for slide in wanted if slide not in set(missing)]
    results = load_results(rows, folders, inputs.calibration, options.slide_level)
    slide_scores = classify_slides(results, sheet, folders, options.slide_level, options.seed)
    evaluation = Evaluation(results, slide_scores, options)
    curves = evaluation.curves()
    metrics = evaluation.metrics()
    for level in ("patch", "calibration", "confusion", "slide", "lesion"):
        metrics[level] |= left_out_figures(sheet, results, metrics[level], options)
    metrics["cohort"] = cohort_figures(sheet, results, missing, options)
    metrics["provenance"] = {
        **provenance_figures(sheet, results, options),
        "tables_sha256": write_tables(outputs.folder, evaluation_tables(evaluation, curves)),
    }
    metrics["schema_version"] = SCHEMA_VERSION
    figures = evaluation_figures(metrics, curves, evaluation.counts, cohort_rows(sheet))
    for name, figure in figures.items():
        save_figure(figure, outputs.folder / f"{name}.png")
    write_text(outputs.folder / "metrics.json", canonical_json(metrics))
    main_figures = (("patch", "auc"), ("slide", "auc"), ("lesion", "froc"))
    shown = (format_figure(metrics[level], name) for level, name in main_figures)
    log.info("%d test slides: patch AUC %s, slide AUC %s, FROC %s", len(rows), *shown)
    _warn_of_patients(len(rows), metrics["cohort"]["test_patients"])
    if missing and not allow_missing:
        raise IncompleteError(
            f"{len(missing)} of {len(wanted)} test slides have no results: {', '.join(missing[:20])}",
            remedy="The figures are marked incomplete. Run their stages, take them out by name with cohort.exclude, "
            "or add --allow-missing",
        )


def _warn_of_patients(slides: int, patients: int) -> None:
    if patients < slides:
        log.warning(
            "%d test slides of %d patients: intervals take slides as independent, and are too narrow where the slides "
            "of a patient are alike",
            slides,
            patients,
        )
