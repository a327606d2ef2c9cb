"""The figures of an evaluation, each with its n and its interval, from the results of the slides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from wsi_pipeline.config import EvaluateRun, IntervalOptions
from wsi_pipeline.evaluation.confusion import RATIOS, Ratio, ratios_of, shares_of
from wsi_pipeline.evaluation.consistency import common_label_rule, common_protocol
from wsi_pipeline.evaluation.slide_classification import SlideScores
from wsi_pipeline.evaluation.slide_results import CohortResults, hits_of, hits_of_slides
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.metrics.calibration import Bin, PooledCalibration
from wsi_pipeline.metrics.curves import (
    Band,
    ConfusionCounts,
    Curve,
    Histogram,
    auc,
    average_precision,
    confusion_counts,
    pr_curve,
    roc_curve,
    thin_curve,
)
from wsi_pipeline.metrics.delong import Labels, Scores, auc_interval
from wsi_pipeline.metrics.intervals import Weights, jackknife_interval, leave_out_weights, too_few_slides
from wsi_pipeline.metrics.lesions import FALSE_POSITIVES_PER_SLIDE, Froc, PooledHits, SlideHits
from wsi_pipeline.metrics.pooled import (
    Floats,
    PooledScores,
    histogram_aucs,
    histogram_average_precisions,
)
from wsi_pipeline.metrics.steps import RELIABILITY_BINS, log_odds_of

_BAND_POINTS = 201
_CURVE_POINTS = 5000
MATLAB_THRESHOLDS = (1.0, 0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)


@dataclass(frozen=True, slots=True)
class Curves:
    """The curves of an evaluation, None where one cannot be computed; `reliability` in bins of the score."""

    roc: Curve | None
    roc_band: Band | None
    pr: Curve | None
    froc: Curve | None
    reliability: list[Bin]
    reliability_at_temperature: list[Bin]


class Evaluation:
    """All figures of the test slides of a cohort."""

    def __init__(self, results: CohortResults, slide_scores: SlideScores, options: EvaluateRun) -> None:
        self.slides = results.slides
        self.pooled = results.pooled
        self.slide_scores = slide_scores
        self._centres = results.centres
        self._chosen = results.chosen
        self._options = options
        self.histogram = self.pooled.histogram
        self.calibration = self.pooled.calibration
        self._temperature = self._chosen.temperature if self._chosen else None
        self.at_temperature = PooledCalibration(results.at_temperature) if self._temperature else None
        self._label_rule = common_label_rule(
            [one for s in self.slides for one in (s.scores.options, s.confusion.options)]
        )
        self.counts = sum((s.counts for s in self.slides), ConfusionCounts(0, 0, 0, 0))

    def metrics(self) -> Figures:
        """The content of `metrics.json` but for the cohort and the provenance."""
        return {
            "patch": self._patch(),
            "calibration": self._calibration(),
            "confusion": self._confusion(),
            "slide": self._slide(),
            "lesion": self._lesion(),
            "operating_point": self._chosen.operating_point.as_json() if self._chosen else None,
            "matlab_parity": self._matlab_parity(),
        }

    def _figure(
        self, name: str, value: float | None, values: Callable[[Weights], Floats], pooled: PooledScores, *, counted: int
    ) -> Figures:
        """A figure of the slides of `pooled`, of which `counted` have what it counts, with its interval.

        `values` maps weights, (rows, slides), to the figure of each.
        """
        left_out = None if value is None or too_few_slides(counted) else values(pooled.leave_out())
        return figure_with_interval(name, value, left_out, counted, self._options.interval.level)

    def curves(self) -> Curves:
        """The curves, of at most about 5,000 points each."""
        histogram, lesions = self.histogram, PooledHits(self.hits()).froc()
        both = histogram.n_normal > 0 and histogram.n_tumor > 0
        return Curves(
            roc=thin_curve(roc_curve(histogram), _CURVE_POINTS) if both else None,
            roc_band=self._roc_band(),
            pr=thin_curve(pr_curve(histogram), _CURVE_POINTS) if histogram.n_tumor else None,
            froc=None if lesions is None else froc_curve(lesions.all_thresholds),
            reliability=self.calibration.curve(),
            reliability_at_temperature=self.at_temperature.curve() if self.at_temperature else [],
        )

    def _roc_band(self) -> Band | None:
        counted, level = min(self.pooled.slides_by_class), self._options.interval.level
        if too_few_slides(counted):
            return None
        rates, slides = np.linspace(0, 1, _BAND_POINTS), len(self.pooled)
        (rates_found,) = self.pooled.weighted_rocs(rates, np.ones((1, slides), np.int32))
        left_out = self.pooled.weighted_rocs(rates, self.pooled.leave_out())
        if np.isnan(left_out).any():
            return None
        low, high = jackknife_interval(rates_found, left_out, counted, level)
        # By definition; elsewhere a curve cannot fall, so a limit holds for all rates on one side of its own.
        low[-1] = 1.0
        return Band(rates, np.maximum.accumulate(low), np.minimum.accumulate(high[::-1])[::-1], level)

    def _patch(self) -> Figures:
        pooled, precision = self.pooled, average_precision(self.histogram)
        return {
            **self._auc_of(pooled),
            **self._figure(
                "average_precision",
                precision,
                lambda w: pooled.weighted(histogram_average_precisions, precision or 0.0, w),
                pooled,
                counted=pooled.slides_by_class[1],
            ),
            "by_centre": {name: self._auc_of(own) for name, own in sorted(self._centres.items())},
            "pooling": "all scored patches of all slides (micro)",
            "label_rule": self._label_rule and self._label_rule.model_dump(mode="json"),
            "macro": self._macro(),
            **interval_method(self._options.interval),
        }

    def _auc_of(self, pooled: PooledScores) -> Figures:
        """ROC AUC of the patches of a part of the slides."""
        histogram = pooled.histogram
        area = auc(histogram)
        return {
            **self._figure(
                "auc",
                area,
                lambda w: pooled.weighted(histogram_aucs, area or 0.0, w),
                pooled,
                counted=min(pooled.slides_by_class),
            ),
            "reason": _reason(histogram.n_normal, histogram.n_tumor, "patches"),
            "n_slides": pooled.scored_slides,
            "n_normal": histogram.n_normal,
            "n_tumor": histogram.n_tumor,
        }

    def _macro(self) -> Figures:
        """Mean over the slides that have patches of both classes."""
        own = self.pooled.aucs
        known = np.isfinite(own)

        def means(weights: Weights) -> Floats:
            with np.errstate(invalid="ignore"):
                found: Floats = (weights * np.where(known, own, 0)).sum(axis=1) / (weights @ known)
            return found

        slides = int(known.sum())
        mean = float(own[known].mean()) if slides else None
        return {
            **self._figure("auc", mean, means, self.pooled, counted=slides),
            "reason": None if slides else "no slide has patches of both classes",
            "n_slides": slides,
        }

    def _calibration(self) -> Figures:
        n = self.histogram.n_normal + self.histogram.n_tumor
        return {
            **self._calibration_of(self.calibration, n),
            "reason": None if n else "there are no patches",
            "bins": f"{RELIABILITY_BINS} of equal width",
            "n_slides": self.pooled.scored_slides,
            "n_patches": n,
            "at_temperature": None
            if self.at_temperature is None
            else {
                **self._calibration_of(self.at_temperature, n),
                "temperature": self._temperature and self._temperature.as_json(),
            },
            **interval_method(self._options.interval),
        }

    def _calibration_of(self, sums: PooledCalibration, n: int) -> Figures:
        slides = len(self.slides)
        figures: Figures = {}
        for name, values in (
            ("expected_calibration_error", sums.expected_errors),
            ("brier_score", sums.brier_scores),
        ):
            value = float(values(np.ones((1, slides), np.int64))[0]) if n else None
            figures |= self._figure(name, value, values, self.pooled, counted=self.pooled.scored_slides)
        return figures

    def _slide(self) -> Figures:
        values = self.slide_scores.values
        known = [s for s in self.slides if s.row.label and values[s.row.slide] is not None]
        scores = np.array([values[s.row.slide] for s in known], np.float64)
        is_tumor = np.array([s.row.label == "tumor" for s in known], bool)
        names = {s.row.slide for s in known}
        return {
            **slide_figures(scores, is_tumor, self._options.interval),
            **self.slide_scores.description,
            "not_scored": {
                s.row.slide: "no score" if s.row.label else "no label" for s in self.slides if s.row.slide not in names
            },
        }

    def hits(self) -> list[SlideHits]:
        """Hits of the slides whose lesions are all annotated."""
        return hits_of_slides(self.slides)

    def _lesion(self) -> Figures:
        return {
            **lesion_figures(self.hits(), self._options.interval),
            "protocol": common_protocol([s.detections.options for s in self.slides]),
            "mostly_ignored": {s.row.slide: s.detections.ignored for s in self.slides if s.detections.ignored},
            "not_scored": {s.row.slide: s.detections.reason for s in self.slides if hits_of(s.detections) is None},
        }

    def _confusion(self) -> Figures:
        per_slide = np.array([list(asdict(s.counts).values()) for s in self.slides], np.int64)
        out: Figures = {
            "counts": asdict(self.counts),
            "share_of_total": shares_of(self.counts),
            "n_slides": int(per_slide.any(axis=1).sum()) if self.slides else 0,
            **interval_method(self._options.interval),
        }
        known = ratios_of(self.counts)
        for name, ratio in RATIOS.items():

            def values(w: Weights, ratio: Ratio = ratio) -> Floats:
                return ratio((w @ per_slide).astype(np.float64).T)

            counted = int(np.isfinite(ratio(per_slide.astype(np.float64).T)).sum()) if self.slides else 0
            out |= self._figure(name, known[name], values, self.pooled, counted=counted)
            out[f"{name}_reason"] = "it divides by 0 patches" if known[name] is None else None
        return out

    def _matlab_parity(self) -> Figures:
        reason = _reason(self.histogram.n_normal, self.histogram.n_tumor, "patches")
        if reason:
            return {"auc": None, "reason": reason, "thresholds": list(MATLAB_THRESHOLDS)}
        points = [confusion_counts(self.histogram, log_odds_of(t)) for t in MATLAB_THRESHOLDS]
        tpr = [c.tp / self.histogram.n_tumor for c in points]
        fpr = [c.fp / self.histogram.n_normal for c in points]
        return {
            "auc": float(np.trapezoid(tpr, fpr)),
            "reason": None,
            "thresholds": list(MATLAB_THRESHOLDS),
            "method": "trapezoids between 13 thresholds, as MathWorks' example; compare with patch.auc, which is exact",
        }


def froc_curve(found: Froc) -> Curve:
    """A FROC curve for tables and figures."""
    return Curve(found.threshold, found.false_positives, found.sensitivity)


def interval_method(interval: IntervalOptions) -> Figures:
    """The method and the level of the intervals."""
    return {
        "interval_method": "jackknife over slides, Wilson's interval with the effective sample size",
        "interval_level": interval.level,
    }


def figure_with_interval(
    name: str, value: float | None, left_out: Floats | None, counted: int, level: float
) -> Figures:
    """A figure that rests on `counted` slides with its interval, or the reason why it has none.

    `left_out` has the figure of each leave-out, (parts,); None where there are too few slides or no figure.
    """
    limits, reason = None, None if value is None else too_few_slides(counted)
    if left_out is not None and np.isnan(left_out).any():
        reason = reason or "too few slides for an interval: a part that is left out has all of a class"
    elif value is not None and left_out is not None and reason is None:
        limits = [float(limit) for limit in jackknife_interval(np.asarray(value), left_out, counted, level)]
    return {name: value, f"{name}_interval": limits, f"{name}_interval_reason": reason}


def slide_figures(scores: Scores, is_tumor: Labels, interval: IntervalOptions) -> Figures:
    """ROC AUC of slides with one score each, (slides,)."""
    n, tumors = len(scores), int(is_tumor.sum())
    value = auc(Histogram.of(scores, is_tumor)) if n else None
    reason = None if value is None else too_few_slides(min(tumors, n - tumors))
    return {
        "auc": value,
        "auc_interval": None if value is None or reason else auc_interval(scores, is_tumor, interval.level),
        "auc_interval_reason": reason,
        "reason": _reason(n - tumors, tumors, "slides"),
        "n_normal": n - tumors,
        "n_tumor": tumors,
        "interval_method": "score interval, variance between binormal and DeLong's",
        "interval_level": interval.level,
    }


def lesion_figures(hits: Sequence[SlideHits], interval: IntervalOptions, missed: float = -math.inf) -> Figures:
    """FROC of slides by Camelyon16's rule and over all thresholds.

    The challenge's script lists a missed lesion with the probability 0, of which `missed` is the confidence: the
    default for log odds, 0 for probabilities.
    """
    pooled = PooledHits(hits, missed)
    found = pooled.froc()
    left_out = None if found is None else pooled.weighted(leave_out_weights(len(hits)))
    counted = sum(bool(h.lesions) for h in hits)

    def figures(number: int) -> Figures:
        curve = found and found[number]
        return _froc_figures(curve, None if left_out is None else left_out[number], counted, interval.level)

    return {
        **figures(1),
        "all_thresholds": figures(0),
        "false_positives_per_slide": list(FALSE_POSITIVES_PER_SLIDE),
        "n_slides": len(hits),
        "n_lesions": sum(len(h.lesions) for h in hits),
        "n_isolated_tumor_cells": sum(h.isolated for h in hits),
        **interval_method(interval),
    }


def _froc_figures(curve: Froc | None, left_out: Floats | None, counted: int, level: float) -> Figures:
    """The scores of a FROC curve and their sensitivities; `left_out` (2, parts) has the scores of each leave-out."""
    scores = (None, None) if curve is None else (curve.interpolated_score, curve.step_score)
    parts = (None, None) if left_out is None else left_out
    return {
        **figure_with_interval("froc", scores[0], parts[0], counted, level),
        **figure_with_interval("froc_step_rule", scores[1], parts[1], counted, level),
        "reason": None if curve is not None else "the slides have no lesions",
        "sensitivity": None if curve is None else curve.step_sensitivity.tolist(),
        "sensitivity_interpolated": None if curve is None else curve.interpolated_sensitivity.tolist(),
    }


def _reason(normals: int, tumors: int, what: str) -> str | None:
    absent = [name for name, count in (("normal", normals), ("tumour", tumors)) if not count]
    return f"there are no {' and no '.join(absent)} {what}" if absent else None
