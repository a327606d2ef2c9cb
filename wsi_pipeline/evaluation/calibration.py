"""The operating point and the temperature, chosen on validation slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from scipy.special import expit

from wsi_pipeline.config import OperatingPointOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.evaluation.confusion import ratios_of
from wsi_pipeline.metrics.calibration import cross_entropy, fit_temperature
from wsi_pipeline.metrics.curves import Histogram, confusion_counts
from wsi_pipeline.metrics.lesions import SlideHits
from wsi_pipeline.metrics.operating_points import at_false_positives, at_sensitivity, max_f1, youden
from wsi_pipeline.metrics.steps import log_odds_of
from wsi_pipeline.receipts.evaluation import ConfusionCells, OperatingPoint, Temperature

_ON_VALIDATION = "validation slides"
_REMEDY = "Add annotated validation slides, or set evaluation.operating_point.rule to fixed"


def fixed_point(options: OperatingPointOptions) -> OperatingPoint:
    """The threshold given in the options."""
    return OperatingPoint(
        rule="fixed",
        threshold=options.threshold,
        threshold_log_odds=log_odds_of(options.threshold),
        chosen_on="given in the config",
    )


def point_by_patches(options: OperatingPointOptions, slides: Sequence[str], histogram: Histogram) -> OperatingPoint:
    """The threshold that the rule youden, max_f1 or sensitivity gives on the patches of `slides`.

    Raises `ConfigError` unless the histogram has patches of both classes.
    """
    _require_both(histogram, f"the operating point {options.rule}", _REMEDY)
    aim: float | None = None
    if options.rule == "sensitivity":
        aim = options.sensitivity
        threshold = at_sensitivity(histogram, aim)
    else:
        threshold = youden(histogram) if options.rule == "youden" else max_f1(histogram)
    return _point(options.rule, aim, threshold, slides, histogram)


def point_by_detections(
    options: OperatingPointOptions, slides: Sequence[str], histogram: Histogram, hits: Sequence[SlideHits]
) -> OperatingPoint:
    """The lowest threshold with at most the given false positives per slide.

    `hits` are those of the slides with known lesions. Raises `ConfigError` where they have no detection.
    """
    aim = options.false_positives_per_slide
    threshold = at_false_positives(hits, aim)
    if threshold is None:
        raise ConfigError(
            f"the operating point false_positives_per_slide has no detection on {len(hits)} fully annotated "
            "validation slides to choose from",
            remedy=_REMEDY,
        )
    false_positives = sum(c >= threshold for one in hits for c in one.false_positives)
    lesions = sum(len(one.lesions) for one in hits)
    found = sum(c >= threshold for one in hits for c in one.hits)
    return _point(options.rule, aim, threshold, slides, histogram).model_copy(
        update={
            "n_slides_with_lesions_known": len(hits),
            "n_lesions": lesions,
            "false_positives_per_slide_there": false_positives / len(hits),
            "lesion_sensitivity_there": found / lesions if lesions else None,
        }
    )


def _point(
    rule: str, aim: float | None, threshold: float, slides: Sequence[str], histogram: Histogram
) -> OperatingPoint:
    counts = confusion_counts(histogram, threshold)
    ratios = ratios_of(counts)
    return OperatingPoint(
        rule=rule,
        aim=aim,
        threshold=float(expit(threshold)),
        threshold_log_odds=threshold,
        chosen_on=_ON_VALIDATION,
        slides=tuple(slides),
        n_slides=len(slides),
        n_normal=histogram.n_normal,
        n_tumor=histogram.n_tumor,
        counts_there=ConfusionCells(**asdict(counts)),
        sensitivity_there=ratios["sensitivity"],
        specificity_there=ratios["specificity"],
        precision_there=ratios["precision"],
        f1_there=ratios["f1"],
    )


def temperature_of(slides: Sequence[str], histogram: Histogram) -> Temperature:
    """The temperature with the least cross-entropy on the patches of `slides`.

    Raises `ConfigError` unless the histogram has patches of both classes.
    """
    _require_both(histogram, "a temperature", "Set evaluation.calibration.temperature to false")
    value = fit_temperature(histogram)
    return Temperature(
        value=value,
        fitted_on=_ON_VALIDATION,
        slides=tuple(slides),
        n_slides=len(slides),
        n_patches=histogram.n_normal + histogram.n_tumor,
        cross_entropy_before=cross_entropy(histogram),
        cross_entropy_after=cross_entropy(histogram, value),
    )


def _require_both(histogram: Histogram, what: str, remedy: str) -> None:
    absent = [name for name, n in (("normal", histogram.n_normal), ("tumour", histogram.n_tumor)) if not n]
    if absent:
        raise ConfigError(
            f"{what} needs normal and tumour patches on the validation slides, which have no {' and no '.join(absent)}",
            remedy=remedy,
        )
