"""Stage calibrate: what is chosen on the validation slides, never on the test slides.

The operating point, and a temperature where the config asks for one. Nothing is read where both are given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import CalibrateRun, OperatingPointOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.evaluation.evaluation import common_model, ratios_of
from wsi_pipeline.evaluation.score_histogram import ScoreCounts
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.io.receipts import Facts, read_receipt, write_receipt
from wsi_pipeline.metrics.calibration import cross_entropy, fit_temperature
from wsi_pipeline.metrics.curves import Histogram, confusion_counts
from wsi_pipeline.metrics.lesions import SlideHits
from wsi_pipeline.metrics.operating_points import at_false_positives, at_sensitivity, max_f1, youden
from wsi_pipeline.metrics.pooled import PooledScores, ScoreSummary

log = logging.getLogger(__name__)

_ON_VALIDATION = "validation slides"
_REMEDY = "Add annotated validation slides, or set evaluation.operating_point.rule to fixed"


def run(
    sheet: Sheet,
    scores_folder: Path,
    detections_folder: Path,
    receipt: Path,
    options: CalibrateRun,
) -> None:
    """Choose on the validation slides of the sheet; `ConfigError` where they do not allow the rule."""
    rule = options.operating_point
    if rule.rule == "fixed" and not options.calibration.temperature:
        facts: Facts = {"model_sha256": None, "operating_point": fixed(rule), "temperature": None}
    else:
        slides = sheet.of_split("validation")
        receipts = [read_receipt(scores_folder / f"{s}.json", "scores") for s in slides]
        model = common_model([(slide, one["model_sha256"]) for slide, one in zip(slides, receipts, strict=True)])
        histogram = _pooled(slides, receipts, scores_folder)
        facts = {
            "model_sha256": model,
            "operating_point": fixed(rule)
            if rule.rule == "fixed"
            else _chosen(rule, slides, histogram, detections_folder),
            "temperature": _temperature(slides, histogram) if options.calibration.temperature else None,
        }
    write_receipt(receipt, "calibrate", facts, options)
    point = facts["operating_point"]
    log.info("operating point %.6g: %s, %s", point["threshold"], point["rule"], point["chosen_on"])


def fixed(options: OperatingPointOptions) -> Figures:
    """The given threshold."""
    return {"rule": "fixed", "threshold": options.threshold, "chosen_on": "given in the config"}


def _pooled(slides: Sequence[str], receipts: Sequence[Facts], folder: Path) -> Histogram:
    pooled = PooledScores()
    for slide, receipt in zip(slides, receipts, strict=True):
        counts = ScoreCounts.read(folder / f"{slide}.parquet", receipt)
        found = (counts.steps, counts.normal, counts.tumor)
        pooled.add(*found, ScoreSummary.of(*found))
    return pooled.histogram


def _chosen(options: OperatingPointOptions, slides: Sequence[str], histogram: Histogram, detections: Path) -> Figures:
    aim: float | None = None
    found: Figures = {}
    if options.rule == "false_positives_per_slide":
        aim = options.false_positives_per_slide
        threshold, found = _by_detections(aim, slides, detections)
    else:
        _need_both(histogram, f"the operating point {options.rule}")
        if options.rule == "sensitivity":
            aim = options.sensitivity
            threshold = at_sensitivity(histogram, aim)
        else:
            threshold = youden(histogram) if options.rule == "youden" else max_f1(histogram)
    counts = confusion_counts(histogram, threshold)
    return {
        "rule": options.rule,
        "aim": aim,
        "threshold": threshold,
        "chosen_on": _ON_VALIDATION,
        "slides": list(slides),
        "n_slides": len(slides),
        "n_normal": histogram.n_normal,
        "n_tumor": histogram.n_tumor,
        "counts_there": asdict(counts),
        **{f"{name}_there": value for name, value in ratios_of(counts).items()},
        **found,
    }


def _by_detections(aim: float, slides: Sequence[str], folder: Path) -> tuple[float, Figures]:
    receipts = [read_receipt(folder / f"{slide}.json", "detect") for slide in slides]
    hits = [
        SlideHits(tuple(one["lesions"]), tuple(one["false_positives"]))
        for one in receipts
        if one["lesions"] is not None
    ]
    threshold = at_false_positives(hits, aim)
    if threshold is None:
        raise ConfigError(
            f"the operating point false_positives_per_slide has no detection on {len(hits)} fully annotated "
            "validation slides to choose from",
            remedy=_REMEDY,
        )
    made = sum(c >= threshold for one in hits for c in one.false_positives)
    lesions = [c for one in hits for c in one.lesions]
    return threshold, {
        "n_slides_with_lesions_known": len(hits),
        "n_lesions": len(lesions),
        "false_positives_per_slide_there": made / len(hits),
        "lesion_sensitivity_there": sum(c >= threshold for c in lesions) / len(lesions) if lesions else None,
    }


def _temperature(slides: Sequence[str], histogram: Histogram) -> Figures:
    _need_both(histogram, "a temperature")
    value = fit_temperature(histogram)
    return {
        "value": value,
        "fitted_on": _ON_VALIDATION,
        "slides": list(slides),
        "n_slides": len(slides),
        "n_patches": histogram.n_normal + histogram.n_tumor,
        "cross_entropy_before": cross_entropy(histogram),
        "cross_entropy_after": cross_entropy(histogram, value),
    }


def _need_both(histogram: Histogram, what: str) -> None:
    absent = [name for name, n in (("normal", histogram.n_normal), ("tumour", histogram.n_tumor)) if not n]
    if absent:
        raise ConfigError(
            f"{what} needs normal and tumour patches on the validation slides, which have no {' and no '.join(absent)}",
            remedy=_REMEDY if what.startswith("the operating") else "Set evaluation.calibration.temperature to false",
        )
