"""Stage evaluate: all figures of a model on the test slides, each with its n and its interval.

Everything global is a sum over small files of the slides; no heatmap is read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsi_pipeline import __version__
from wsi_pipeline.cohort.sheet import SPLITS, Sheet, SlideRow
from wsi_pipeline.config import EvaluateRun
from wsi_pipeline.errors import IncompleteError, StoreError
from wsi_pipeline.evaluation.evaluation import Evaluation, Scored, check_chosen_for, common_model
from wsi_pipeline.evaluation.score_histogram import ScoreCounts
from wsi_pipeline.evaluation.slide_scores import SlideScores, by_forest, by_maximum, by_top_share
from wsi_pipeline.evaluation.summary import Figures, said
from wsi_pipeline.evaluation.tables import band_table, curve_table, reliability_table, slides_table, write_tables
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import canonical_json, digest_json
from wsi_pipeline.io.receipts import Facts, read_receipt
from wsi_pipeline.metrics.calibration import CalibrationSums, PooledCalibration, at_temperature
from wsi_pipeline.metrics.curves import Curve, pr_curve, roc_curve, thin_curve
from wsi_pipeline.metrics.lesions import froc
from wsi_pipeline.metrics.pooled import PooledScores, ScoreSummary
from wsi_pipeline.metrics.steps import STEPS
from wsi_pipeline.plots.figures import (
    cohort_table,
    confusion_matrix,
    froc_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
    save_figure,
)

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
_CURVE_POINTS = 5000


def run(
    sheet: Sheet,
    excluded: Sequence[str],
    folders: Folders,
    calibration: Path,
    output: Path,
    options: EvaluateRun,
    *,
    allow_missing: bool = False,
) -> Figures:
    """Evaluate the test slides and write metrics, tables and figures into `output`.

    Slides that lack results are named in `metrics.json`, and `cohort.complete` is false; then it ends with
    `IncompleteError`, unless `allow_missing`.
    """
    wanted = sheet.of_split("test")
    missing = [s for s in wanted if not all(path.is_file() for path in folders.files(s))]
    loaded = _load([sheet[s] for s in wanted if s not in set(missing)], folders, calibration, options)
    slides = loaded.slides
    model = common_model([s.model for s in slides])
    if missing:
        log.warning("without results: %s", ", ".join(missing))
    evaluation = Evaluation(
        slides,
        loaded.pooled,
        loaded.centres,
        PooledCalibration(loaded.at_temperature),
        _slide_scores(sheet, loaded, folders, options),
        loaded.chosen,
        options,
    )
    metrics = evaluation.metrics()
    scored = {s.row.slide for s in slides}
    for level in ("patch", "calibration", "confusion", "slide", "lesion"):
        metrics[level] |= sheet.left_out(scored - set(metrics[level].get("not_scored", ())), options.test_set)
    metrics["cohort"] = _cohort(sheet, slides, excluded, missing, options)
    metrics["provenance"] = {
        "wsi_pipeline": __version__,
        "step_version": EvaluateRun.step_version,
        "model_sha256": model,
        "inputs_sha256": digest_json([loaded.chosen, *([s.scores, s.confusion, s.detections] for s in slides)]),
        "seed": options.seed,
    }
    metrics["schema_version"] = SCHEMA_VERSION
    _write(output, metrics, evaluation, sheet)
    if missing and not allow_missing:
        raise IncompleteError(
            f"{len(missing)} of {len(wanted)} test slides have no results: {', '.join(missing[:20])}",
            remedy="The figures are marked incomplete. Run their stages, take them out by name with cohort.exclude, "
            "or say --allow-missing",
        )
    return metrics


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the earlier stages wrote, for one model."""

    scores: Path
    confusion: Path
    detections: Path

    def files(self, slide: str) -> tuple[Path, Path, Path, Path]:
        """Receipts of scores, confusion and detect, and the counts of scores."""
        name = f"{slide}.json"
        receipts = self.scores / name, self.confusion / name, self.detections / name
        return (*receipts, self.scores / f"{slide}.parquet")


@dataclass(slots=True)
class _Loaded:
    """Slides as they are read, one after the other; their scores are kept as sums only."""

    chosen: Facts
    slides: list[Scored] = field(default_factory=list)
    pooled: PooledScores = field(default_factory=PooledScores)
    centres: dict[str, PooledScores] = field(default_factory=dict)
    at_temperature: list[CalibrationSums] = field(default_factory=list)
    top_means: dict[str, float | None] = field(default_factory=dict)


def _load(rows: Sequence[SlideRow], folders: Folders, calibration: Path, options: EvaluateRun) -> _Loaded:
    nothing: Facts = {"operating_point": None, "temperature": None, "model_sha256": None}
    loaded = _Loaded(read_receipt(calibration, "calibrate") if rows else nothing)
    chosen = loaded.chosen
    # The scaled step of each step.
    scaled = at_temperature(np.arange(STEPS + 1), chosen["temperature"]["value"]) if chosen["temperature"] else None
    for row in rows:
        scored, counted, detected, table = folders.files(row.slide)
        receipts = read_receipt(scored, "scores"), read_receipt(counted, "confusion"), read_receipt(detected, "detect")
        counts = ScoreCounts.read(table, receipts[0])
        found = (counts.steps, counts.normal, counts.tumor)
        sketch = ScoreSummary.of(*found)
        for part in (loaded.pooled, *([loaded.centres.setdefault(row.centre, PooledScores())] if row.centre else [])):
            part.add(*found, sketch)
        if scaled is not None:
            loaded.at_temperature.append(CalibrationSums.of(scaled[counts.steps], counts.normal, counts.tumor))
        if options.slide_level.score == "top_share":
            loaded.top_means[row.slide] = counts.top_mean(options.slide_level.top_share)
        slide = Scored(row, *receipts)
        _check(slide, chosen, calibration)
        loaded.slides.append(slide)
    return loaded


def _check(slide: Scored, chosen: Facts, calibration: Path) -> None:
    """`StoreError` where a slide's results do not belong to the rest."""
    name, threshold = slide.row.slide, chosen["operating_point"]["threshold"]
    if slide.confusion["threshold"] != threshold:
        raise StoreError(
            f"slide {name}: judged at the threshold {slide.confusion['threshold']:g}, but {calibration} says "
            f"{threshold:g}",
            remedy="Run the stage confusion again for all slides",
        )
    check_chosen_for(chosen, *slide.model)
    truth, label = slide.scores["truth"], slide.row.label
    has = "has tumour" if truth["tumor"] else "has no tumour"
    if (label == "normal" and truth["tumor"]) or (label == "tumor" and not truth["tumor"] and not truth["ignored"]):
        raise StoreError(
            f"slide {name}: the sheet's label is {label}, but its truth {has}",
            remedy="Correct the sheet or the annotation, and run the stage truth again",
        )


def _slide_scores(sheet: Sheet, loaded: _Loaded, folders: Folders, options: EvaluateRun) -> SlideScores:
    features = {s.row.slide: s.scores["features"] for s in loaded.slides}
    rule = options.slide_level
    if rule.score == "top_share":
        return by_top_share(loaded.top_means, rule.top_share)
    if rule.score == "maximum" or not features:
        return by_maximum(features)
    others = sheet.of_split("train", "validation")
    receipts = {slide: read_receipt(folders.scores / f"{slide}.json", "scores") for slide in others}
    common_model([*((s, one["model_sha256"]) for s, one in receipts.items()), *(s.model for s in loaded.slides)])
    fitted_on = {slide: (one["features"], sheet[slide].label) for slide, one in receipts.items()}
    return by_forest(features, fitted_on, trees=rule.trees, seed=options.seed)


def _cohort(
    sheet: Sheet, slides: Sequence[Scored], excluded: Sequence[str], missing: Sequence[str], options: EvaluateRun
) -> Figures:
    return {
        "name": options.cohort_name,
        "synthetic": options.synthetic,
        "complete": not missing,
        "missing": list(missing),
        "excluded": list(excluded),
        "test_slides": [s.row.slide for s in slides],
        "unread_positions": {s.row.slide: n for s in slides if (n := s.scores["unread_positions"])},
        "slides": {split: len(sheet.of_split(split)) for split in ("train", "validation", "test")},
    }


def _write(output: Path, metrics: Figures, evaluation: Evaluation, sheet: Sheet) -> None:
    slides, histogram, synthetic = evaluation.slides, evaluation.histogram, metrics["cohort"]["synthetic"]
    both = histogram.n_normal > 0 and histogram.n_tumor > 0
    roc = thin_curve(roc_curve(histogram), _CURVE_POINTS) if both else None
    pr = thin_curve(pr_curve(histogram), _CURVE_POINTS) if histogram.n_tumor else None
    lesions = froc(evaluation.hits())
    points = None if lesions is None else Curve(lesions.threshold, lesions.false_positives, lesions.sensitivity)
    areas = [None if math.isnan(area) else area for area in evaluation.pooled.aucs.tolist()]
    band = evaluation.roc_band
    tables = {
        "roc.csv": curve_table("false_positive_rate", "true_positive_rate", roc),
        "roc_band.csv": band_table(band),
        "pr.csv": curve_table("recall", "precision", pr),
        "froc.csv": curve_table("false_positives_per_slide", "sensitivity", points),
        "reliability.csv": reliability_table(evaluation.calibration.curve()),
        "slides.csv": slides_table(slides, evaluation.slide_scores.values, areas),
    }
    metrics["provenance"]["tables_sha256"] = write_tables(output, tables)
    patch, slide, lesion = metrics["patch"], metrics["slide"], metrics["lesion"]
    n = f"{patch['n_tumor']:,} tumour and {patch['n_normal']:,} normal patches"
    threshold = (metrics["operating_point"] or {}).get("threshold", float("nan"))
    figures = {
        "roc": roc_figure(roc, band, f"patch AUC {said(patch, 'auc')}\n{n}", synthetic),
        "pr": pr_figure(pr, f"average precision {_number(patch['average_precision'])}\n{n}", synthetic),
        "froc": froc_figure(
            None if points is None else points.x,
            None if points is None else points.y,
            f"FROC {said(lesion, 'froc')}\n{lesion['n_lesions']} lesions, {lesion['n_slides']} slides",
            synthetic,
        ),
        "reliability": reliability_figure(
            evaluation.calibration.curve(),
            evaluation.at_temperature.curve() if evaluation.at_temperature else [],
            f"calibration error {said(metrics['calibration'], 'expected_calibration_error')}\n{n}",
            synthetic,
        ),
        "confusion": confusion_matrix(evaluation.counts, threshold, synthetic),
        "cohort": cohort_table(_cohort_rows(sheet), f"Cohort {metrics['cohort']['name']}", synthetic),
    }
    for name, figure in figures.items():
        save_figure(figure, output / f"{name}.png")
    write_text(output / "metrics.json", canonical_json(metrics))
    log.info(
        "%d test slides: patch AUC %s, slide AUC %s, FROC %s",
        len(slides),
        said(patch, "auc"),
        said(slide, "auc"),
        said(lesion, "froc"),
    )


def _cohort_rows(sheet: Sheet) -> list[tuple[str, ...]]:
    """How many slides each split has, of which kinds and from where."""
    rows: list[tuple[str, ...]] = [("", "slides", "tumour", "normal", "not labelled", "patients", "centres")]
    for split in SPLITS:
        slides = [sheet[name] for name in sheet.of_split(split)]
        labels = [sum(row.label == label for row in slides) for label in ("tumor", "normal", None)]
        places = [len({value for row in slides if (value := getattr(row, key))}) for key in ("patient", "centre")]
        rows.append((split, *(f"{n:,}" for n in (len(slides), *labels)), *(f"{n:,}" if n else "–" for n in places)))
    return rows


def _number(value: float | None) -> str:
    return "not computed" if value is None else f"{value:.4f}"
