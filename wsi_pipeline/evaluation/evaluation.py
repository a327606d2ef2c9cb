"""The figures of an evaluation, each with its n and its interval, from what the stages found on each slide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from wsi_pipeline.cohort.sheet import SlideRow
from wsi_pipeline.config import EvaluateRun, IntervalOptions
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.slide_scores import SlideScores
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.io.digests import digest_json
from wsi_pipeline.io.receipts import Facts
from wsi_pipeline.metrics.calibration import RELIABILITY_BINS, PooledCalibration
from wsi_pipeline.metrics.curves import Band, ConfusionCounts, Histogram, auc, average_precision, confusion_counts
from wsi_pipeline.metrics.delong import Labels, Scores, delong_interval
from wsi_pipeline.metrics.intervals import Weights, bootstrap_weights, percentile_interval
from wsi_pipeline.metrics.lesions import FALSE_POSITIVES_PER_SLIDE, PooledHits, SlideHits
from wsi_pipeline.metrics.pooled import (
    Floats,
    PooledScores,
    histogram_aucs,
    histogram_average_precisions,
    resampled_aucs,
)

# The part of the slides that is all of them.
_ALL = "slides"
_BAND_POINTS = 201
MATLAB_THRESHOLDS = (1.0, 0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)


@dataclass(frozen=True, slots=True)
class Scored:
    """What the earlier stages found on one slide: their receipts."""

    row: SlideRow
    scores: Facts
    confusion: Facts
    detections: Facts

    @property
    def model(self) -> tuple[str, str]:
        """Slide and digest of the model that predicted it; `StoreError` where the stages do not agree."""
        slide = self.row.slide
        common_model([(slide, one["model_sha256"]) for one in (self.scores, self.confusion, self.detections)])
        return slide, self.scores["model_sha256"]

    @property
    def counts(self) -> ConfusionCounts:
        """Confusion at the operating point."""
        return ConfusionCounts(**self.confusion["counts"])


class Evaluation:
    """All figures of some slides.

    `pooled` has their scores in the same order, `centres` those of each centre, `at_temperature` the calibration
    of the scores at the temperature that was chosen. `chosen` is the receipt of the stage calibrate.
    """

    def __init__(
        self,
        slides: Sequence[Scored],
        pooled: PooledScores,
        centres: Mapping[str, PooledScores],
        at_temperature: PooledCalibration,
        slide_scores: SlideScores,
        chosen: Facts,
        options: EvaluateRun,
    ) -> None:
        self.slides, self.pooled, self._centres, self._options = slides, pooled, centres, options
        self.slide_scores, self._chosen = slide_scores, chosen
        self.histogram, self.calibration = pooled.histogram, pooled.calibration
        self.at_temperature = at_temperature if chosen["temperature"] else None
        self._drawn: tuple[str, Weights] = ("", np.zeros((0, 0), np.int64))
        self._judged = _common_rule(slides)
        self.roc_band: Band | None = None
        self.counts = sum((s.counts for s in slides), ConfusionCounts(0, 0, 0, 0))

    def metrics(self) -> Figures:
        # Those that rest on all slides come first: they share their resamples.
        figures = {"patch": self._patch(), "calibration": self._calibration(), "confusion": self._confusion()}
        figures["patch"]["by_centre"] = self._by_centre()
        return {
            **figures,
            "slide": self._slide(),
            "lesion": self._lesion(),
            "operating_point": self._chosen["operating_point"],
            "matlab_parity": self._matlab_parity(),
        }

    def _weights(self, part: str, slides: int) -> Weights:
        """Of the resamples of a part of the slides; all its figures share them."""
        if part != self._drawn[0]:
            # Only those used last are kept: of many slides they are large.
            self._drawn = part, bootstrap_weights(slides, self._options.interval.resamples, self._options.seed, part)
        return self._drawn[1]

    def _interval(self, part: str, slides: int, values: Callable[[Weights], Floats]) -> list[float] | None:
        """Interval of a function of the weights of all resamples at once."""
        if slides < 2:
            return None
        return percentile_interval(values(self._weights(part, slides)), self._options.interval.level)

    def _method(self) -> Figures:
        return interval_method(self._options.interval)

    def _roc_band(self) -> Band | None:
        rates, level = np.linspace(0, 1, _BAND_POINTS), self._options.interval.level
        drawn = self.pooled.resampled_rocs(rates, self._weights(_ALL, len(self.slides)))
        if len(drawn) < self._options.interval.resamples / 2:
            return None
        low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2), axis=0)
        return Band(rates, low, high, level)

    def _patch(self) -> Figures:
        pooled, histogram, slides = self.pooled, self.histogram, len(self.slides)
        area, precision = auc(histogram), average_precision(histogram)
        self.roc_band = self._roc_band() if area is not None and slides > 1 else None
        return {
            "auc": area,
            "auc_interval": None
            if area is None
            else self._interval(_ALL, slides, lambda w: pooled.resampled(histogram_aucs, area, w)),
            "average_precision": precision,
            "average_precision_interval": None
            if precision is None
            else self._interval(_ALL, slides, lambda w: pooled.resampled(histogram_average_precisions, precision, w)),
            "reason": _reason(histogram.n_normal, histogram.n_tumor, "patches"),
            "pooling": "all scored patches of all slides (micro)",
            "n_slides": slides,
            "n_normal": histogram.n_normal,
            "n_tumor": histogram.n_tumor,
            "label_rule": self._judged,
            "macro": self._macro(),
            **self._method(),
        }

    def _macro(self) -> Figures:
        """Mean over the slides that have patches of both classes."""
        own = self.pooled.aucs
        known = np.isfinite(own)

        def means(weights: Weights) -> Floats:
            with np.errstate(invalid="ignore"):
                found: Floats = (weights * np.where(known, own, 0)).sum(axis=1) / (weights @ known)
            return found

        return {
            "auc": float(own[known].mean()) if known.any() else None,
            "auc_interval": self._interval(_ALL, len(own), means) if known.any() else None,
            "reason": None if known.any() else "no slide has patches of both classes",
            "n_slides": int(known.sum()),
        }

    def _by_centre(self) -> dict[str, Figures]:
        return {centre: self._of_centre(centre, self._centres[centre]) for centre in sorted(self._centres)}

    def _of_centre(self, centre: str, pooled: PooledScores) -> Figures:
        histogram, slides = pooled.histogram, len(pooled)
        area = auc(histogram)
        return {
            "auc": area,
            "auc_interval": None
            if area is None
            else self._interval(f"centre {centre}", slides, lambda w: pooled.resampled(histogram_aucs, area, w)),
            "reason": _reason(histogram.n_normal, histogram.n_tumor, "patches"),
            "n_slides": slides,
            "n_normal": histogram.n_normal,
            "n_tumor": histogram.n_tumor,
        }

    def _calibration(self) -> Figures:
        n = self.histogram.n_normal + self.histogram.n_tumor
        return {
            **self._calibration_of(self.calibration, n),
            "reason": None if n else "there are no patches",
            "bins": f"{RELIABILITY_BINS} of equal width",
            "n_slides": len(self.slides),
            "n_patches": n,
            "at_temperature": None
            if self.at_temperature is None
            else {**self._calibration_of(self.at_temperature, n), "temperature": self._chosen["temperature"]},
            **self._method(),
        }

    def _calibration_of(self, sums: PooledCalibration, n: int) -> Figures:
        slides = len(self.slides)
        figures: Figures = {}
        for name, values in (
            ("expected_calibration_error", sums.expected_errors),
            ("brier_score", sums.brier_scores),
        ):
            figures[name] = float(values(np.ones((1, slides), np.int64))[0]) if n else None
            figures[f"{name}_interval"] = self._interval(_ALL, slides, values) if n else None
        return figures

    def _slide(self) -> Figures:
        values = self.slide_scores.values
        known = [s for s in self.slides if s.row.label and values[s.row.slide] is not None]
        scores = np.array([values[s.row.slide] for s in known], np.float64)
        is_tumor = np.array([s.row.label == "tumor" for s in known], bool)
        names = {s.row.slide for s in known}
        return {
            **slide_figures(scores, is_tumor, self._options.interval, self._options.seed),
            **self.slide_scores.description,
            "not_scored": {
                s.row.slide: "no score" if s.row.label else "no label" for s in self.slides if s.row.slide not in names
            },
        }

    def hits(self) -> list[SlideHits]:
        """Hits of the slides whose lesions are all annotated."""
        return [
            SlideHits(tuple(s.detections["lesions"]), tuple(s.detections["false_positives"]))
            for s in self.slides
            if s.detections["lesions"] is not None
        ]

    def _lesion(self) -> Figures:
        return {
            **lesion_figures(self.hits(), self._options.interval, self._options.seed),
            "n_isolated_tumor_cells": sum(s.detections["isolated"] or 0 for s in self.slides),
            "not_scored": {s.row.slide: s.detections["reason"] for s in self.slides if s.detections["lesions"] is None},
        }

    def _confusion(self) -> Figures:
        per_slide = np.array([list(asdict(s.counts).values()) for s in self.slides], np.int64)
        out: Figures = {
            "counts": asdict(self.counts),
            "share_of_total": shares_of(self.counts),
            **ratios_of(self.counts),
            "n_slides": len(self.slides),
            **self._method(),
        }
        for name, ratio in RATIOS.items():

            def values(w: Weights, ratio: Ratio = ratio) -> Floats:
                return ratio((w @ per_slide).astype(np.float64).T)

            out[f"{name}_interval"] = self._interval(_ALL, len(self.slides), values)
        return out

    def _matlab_parity(self) -> Figures:
        reason = _reason(self.histogram.n_normal, self.histogram.n_tumor, "patches")
        if reason:
            return {"auc": None, "reason": reason, "thresholds": list(MATLAB_THRESHOLDS)}
        points = [confusion_counts(self.histogram, t) for t in MATLAB_THRESHOLDS]
        tpr = [c.tp / self.histogram.n_tumor for c in points]
        fpr = [c.fp / self.histogram.n_normal for c in points]
        return {
            "auc": float(np.trapezoid(tpr, fpr)),
            "reason": None,
            "thresholds": list(MATLAB_THRESHOLDS),
            "method": "trapezoids between 13 thresholds, as MathWorks' example; compare with patch.auc, which is exact",
        }


def interval_method(interval: IntervalOptions) -> Figures:
    """How the intervals of a level were made."""
    return {
        "interval_method": f"percentile bootstrap over slides, {interval.resamples} resamples",
        "interval_level": interval.level,
    }


def slide_figures(scores: Scores, is_tumor: Labels, interval: IntervalOptions, seed: int) -> Figures:
    """ROC AUC of slides with one score each, (slides,)."""
    n, tumors = len(scores), int(is_tumor.sum())
    value = auc(Histogram.of(scores, is_tumor)) if n else None
    drawn = None
    if value is not None:
        weights = bootstrap_weights(n, interval.resamples, seed, "slide")
        drawn = percentile_interval(resampled_aucs(scores, is_tumor, weights), interval.level)
    return {
        "auc": value,
        "auc_interval": drawn,
        "auc_delong_interval": None if value is None else delong_interval(scores, is_tumor, interval.level),
        "reason": _reason(n - tumors, tumors, "slides"),
        "n_normal": n - tumors,
        "n_tumor": tumors,
        **interval_method(interval),
    }


def lesion_figures(hits: Sequence[SlideHits], interval: IntervalOptions, seed: int) -> Figures:
    """FROC of the hits of slides."""
    pooled = PooledHits(hits)
    result = pooled.froc()
    intervals: list[list[float] | None] = [None, None]
    if result is not None and len(hits) > 1:
        drawn = pooled.resampled(bootstrap_weights(len(hits), interval.resamples, seed, "lesion"))
        intervals = [percentile_interval(scores, interval.level) for scores in drawn]
    return {
        "froc": None if result is None else result.interpolated_score,
        "froc_interval": intervals[0],
        "froc_step_rule": None if result is None else result.step_score,
        "froc_step_rule_interval": intervals[1],
        "false_positives_per_slide": list(FALSE_POSITIVES_PER_SLIDE),
        "sensitivity": None if result is None else list(result.step_sensitivity),
        "sensitivity_interpolated": None if result is None else list(result.interpolated_sensitivity),
        "reason": None if result is not None else "the slides have no lesions",
        "n_slides": len(hits),
        "n_lesions": sum(len(h.lesions) for h in hits),
        **interval_method(interval),
    }


# Of counts (tp, fp, fn, tn), each of any shape; not a number where there is nothing to divide by.
Ratio = Callable[[Floats], Floats]
RATIOS: dict[str, Ratio] = {
    "sensitivity": lambda c: _shares(c[0], c[0] + c[2]),
    "specificity": lambda c: _shares(c[3], c[3] + c[1]),
    "precision": lambda c: _shares(c[0], c[0] + c[1]),
    "f1": lambda c: _shares(2 * c[0], 2 * c[0] + c[1] + c[2]),
}


def _shares(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: Floats = np.divide(part, whole)
    return shares


def shares_of(counts: ConfusionCounts) -> dict[str, float | None]:
    """Each cell of a confusion matrix as a share of its total."""
    return {name: count / counts.total if counts.total else None for name, count in asdict(counts).items()}


def ratios_of(counts: ConfusionCounts) -> dict[str, float | None]:
    """Sensitivity, specificity, precision and F1; None where there is nothing to divide by."""
    cells = np.array(list(asdict(counts).values()), np.float64)
    found = {name: float(ratio(cells)) for name, ratio in RATIOS.items()}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def common_model(slides: Sequence[tuple[str, str]]) -> str | None:
    """The model that predicted all of (slide, model); `StoreError` where there are two."""
    models = {model: slide for slide, model in slides}
    if len(models) > 1:
        (a, first), (b, second), *_ = models.items()
        raise StoreError(
            f"{first} was predicted by the model {a[:12]}, {second} by {b[:12]}",
            remedy="Run the stage heatmap again for all slides",
        )
    return next(iter(models), None)


def check_chosen_for(chosen: Facts, slide: str, model: str) -> None:
    """`StoreError` where what the stage calibrate chose is for another model than that of the slide."""
    if chosen["model_sha256"] not in (None, model):
        raise StoreError(
            f"slide {slide} was predicted by the model {model[:12]}, but the operating point was chosen for "
            f"{chosen['model_sha256'][:12]}",
            remedy="Run the stage calibrate again",
        )


def _common_rule(slides: Sequence[Scored]) -> Figures | None:
    rules = [one["options"] for s in slides for one in (s.scores, s.confusion)]
    judged: dict[str, Figures] = {digest_json(rule): rule for rule in rules}
    if len(judged) > 1:
        raise StoreError(
            "the slides were not all judged by the same label rule",
            remedy="Run the stages scores and confusion again for all slides",
        )
    return next(iter(judged.values()), None)


def _reason(normals: int, tumors: int, what: str) -> str | None:
    absent = [name for name, count in (("normal", normals), ("tumour", tumors)) if not count]
    return f"there are no {' and no '.join(absent)} {what}" if absent else None
