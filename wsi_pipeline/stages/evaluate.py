"""Stage evaluate: all figures of a model on the test slides, each with its n and its interval.

Everything global is a sum over small files of the slides; no heatmap is read.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline import __version__
from wsi_pipeline.config import STEP_VERSIONS, EvaluateOptions
from wsi_pipeline.errors import IncompleteError, StoreError
from wsi_pipeline.figures import confusion_chart, froc_figure, pr_figure, roc_figure
from wsi_pipeline.files import canonical_json, digest_json, publish, write_text
from wsi_pipeline.heatmaps import STEPS
from wsi_pipeline.metrics.curves import (
    Counts,
    Curve,
    Histogram,
    auc,
    average_precision,
    counts_at,
    pr_curve,
    roc_curve,
    thinned,
)
from wsi_pipeline.metrics.delong import delong_interval
from wsi_pipeline.metrics.intervals import Weights, pair_wins, percentile_interval, slide_weights, weighted_auc
from wsi_pipeline.metrics.lesions import FALSE_POSITIVES_PER_SLIDE, SlideHits, froc
from wsi_pipeline.receipts import Facts, read_receipt
from wsi_pipeline.sheet import Sheet, SlideRow
from wsi_pipeline.stages.confusion import counts_of, read_scores
from wsi_pipeline.summary import Figures, said

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MATLAB_THRESHOLDS = (1.0, 0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)
_CURVE_POINTS = 5000


@dataclass(frozen=True, slots=True)
class Scored:
    """What the earlier stages found on one slide."""

    row: SlideRow
    confusion: Facts
    detections: Facts
    steps: NDArray[np.int64]
    normal: NDArray[np.int64]
    tumor: NDArray[np.int64]


def run(
    sheet: Sheet,
    excluded: Sequence[str],
    confusion_folder: Path,
    detections_folder: Path,
    output: Path,
    options: EvaluateOptions,
    *,
    allow_missing: bool = False,
) -> Figures:
    """Evaluate the test slides and write metrics, tables and figures into `output`.

    `IncompleteError` where a test slide has no results, unless `allow_missing`: then the slides that
    are missing are named in `metrics.json` and `cohort.complete` is false.
    """
    wanted = sheet.of_split("test")
    files = {s: _files_of(s, confusion_folder, detections_folder) for s in wanted}
    missing = [s for s in wanted if not all(path.is_file() for path in files[s])]
    if missing and not allow_missing:
        raise IncompleteError(
            f"{len(missing)} of {len(wanted)} test slides have no results: {', '.join(missing[:20])}",
            remedy="Run their stages, or take them out by name with cohort.exclude",
        )
    slides = [_load(sheet[s], *files[s]) for s in wanted if s not in missing]
    model = _common_model(slides)
    if missing:
        log.warning("without results: %s", ", ".join(missing))
    evaluation = Evaluation(slides, options)
    metrics = evaluation.metrics()
    scored = {s.row.slide for s in slides}
    for level in ("patch", "confusion", "slide", "lesion"):
        metrics[level] |= sheet.left_out(scored - set(metrics[level].get("not_scored", ())))
    metrics["cohort"] = _cohort(sheet, slides, excluded, missing, options)
    metrics["provenance"] = {
        "wsi_pipeline": __version__,
        "step_version": STEP_VERSIONS["evaluate"],
        "model_sha256": model,
        "inputs_sha256": digest_json([[s.confusion, s.detections] for s in slides]),
        "seed": options.seed,
    }
    metrics["schema_version"] = SCHEMA_VERSION
    _write(output, metrics, evaluation)
    return metrics


class Evaluation:
    """All figures of some slides."""

    def __init__(self, slides: Sequence[Scored], options: EvaluateOptions) -> None:
        self.slides, self._options = slides, options
        self.histogram, self._normal, self._tumor = _aligned(slides)
        judged: dict[str, Figures] = {digest_json(s.confusion["options"]): s.confusion["options"] for s in slides}
        if len(judged) > 1:
            raise StoreError(
                "the slides were not all judged at the same operating point and by the same label rule",
                remedy="Run the stage confusion again for all slides",
            )
        self._judged = next(iter(judged.values()), None)
        self.counts = sum((counts_of(s.confusion) for s in slides), Counts(0, 0, 0, 0))

    def metrics(self) -> Figures:
        return {
            "patch": self._patch(),
            "slide": self._slide(),
            "lesion": self._lesion(),
            "confusion": self._confusion(),
            "operating_point": {**self._judged["operating_point"], "chosen_on": "given in the config"}
            if self._judged
            else None,
            "matlab_parity": self._matlab_parity(),
        }

    def _interval(self, figure: str, slides: int, statistic: Callable[[Weights], float | None]) -> list[float] | None:
        if slides < 2:
            return None
        weights = slide_weights(slides, self._options.interval.resamples, self._options.seed, figure)
        return percentile_interval(statistic, weights, self._options.interval.level)

    def _method(self) -> Figures:
        interval = self._options.interval
        return {
            "interval_method": f"percentile bootstrap over slides, {interval.resamples} resamples",
            "interval_level": interval.level,
        }

    def _patch(self) -> Figures:
        area = auc(self.histogram)
        wins = pair_wins(self._normal, self._tumor)
        normals, tumors = self._normal.sum(axis=1), self._tumor.sum(axis=1)
        return {
            "auc": area,
            "auc_interval": None
            if area is None
            else self._interval("patch", len(self.slides), lambda w: weighted_auc(wins, normals, tumors, w)),
            "average_precision": average_precision(self.histogram),
            "reason": _reason(self.histogram.normals, self.histogram.tumors, "patches"),
            "pooling": "all scored patches of all slides (micro)",
            "n_slides": len(self.slides),
            "n_normal": self.histogram.normals,
            "n_tumor": self.histogram.tumors,
            "label_rule": self._judged and self._judged["patch_level"],
            **self._method(),
        }

    def _slide(self) -> Figures:
        known = [s for s in self.slides if s.row.label and s.confusion["slide_score"] is not None]
        scores = np.array([s.confusion["slide_score"] for s in known], np.float64)
        is_tumor = np.array([s.row.label == "tumor" for s in known], bool)

        def area(weights: Weights) -> float | None:
            picked = np.repeat(np.arange(len(known)), weights)
            return auc(Histogram.of(scores[picked], is_tumor[picked]))

        tumors = int(is_tumor.sum())
        value = area(np.ones(len(known), np.int64)) if known else None
        return {
            "auc": value,
            "auc_interval": None if value is None else self._interval("slide", len(known), area),
            "auc_delong_interval": None
            if value is None
            else delong_interval(scores, is_tumor, self._options.interval.level),
            "reason": _reason(len(known) - tumors, tumors, "slides"),
            "score": "maximum of the heatmap",
            "n_normal": len(known) - tumors,
            "n_tumor": tumors,
            "not_scored": {
                s.row.slide: "no score" if s.row.label else "no label"
                for s in self.slides
                if s.row.slide not in {k.row.slide for k in known}
            },
            **self._method(),
        }

    def hits(self) -> list[SlideHits]:
        """Hits of the slides whose lesions are all annotated."""
        return [
            SlideHits(tuple(s.detections["lesions"]), tuple(s.detections["false_positives"]))
            for s in self.slides
            if s.detections["lesions"] is not None
        ]

    def _lesion(self) -> Figures:
        hits = self.hits()
        result = froc(hits)

        def score(weights: Weights) -> float | None:
            drawn = froc([hits[k] for k in np.repeat(np.arange(len(hits)), weights)])
            return None if drawn is None else drawn.interpolated_score

        lesions = sum(len(h.lesions) for h in hits)
        return {
            "froc": None if result is None else result.interpolated_score,
            "froc_interval": None if result is None else self._interval("lesion", len(hits), score),
            "froc_step_rule": None if result is None else result.step_score,
            "false_positives_per_slide": list(FALSE_POSITIVES_PER_SLIDE),
            "reason": None if result is not None else "the slides have no lesions",
            "n_slides": len(hits),
            "n_lesions": lesions,
            "n_isolated_tumor_cells": sum(s.detections["isolated"] or 0 for s in self.slides),
            "not_scored": {s.row.slide: s.detections["reason"] for s in self.slides if s.detections["lesions"] is None},
            **self._method(),
        }

    def _confusion(self) -> Figures:
        per_slide = np.array([list(asdict(counts_of(s.confusion)).values()) for s in self.slides], np.int64)
        out: Figures = {
            "counts": asdict(self.counts),
            "share_of_total": {k: _ratio(v, self.counts.total) for k, v in asdict(self.counts).items()},
            "n_slides": len(self.slides),
            **self._method(),
        }
        for name, ratio in RATIOS.items():

            def statistic(w: Weights, ratio: Callable[[Counts], float | None] = ratio) -> float | None:
                return ratio(Counts(*(w @ per_slide).tolist()))

            out[name] = ratio(self.counts)
            out[f"{name}_interval"] = self._interval(name, len(self.slides), statistic)
        return out

    def _matlab_parity(self) -> Figures:
        reason = _reason(self.histogram.normals, self.histogram.tumors, "patches")
        if reason:
            return {"auc": None, "reason": reason, "thresholds": list(MATLAB_THRESHOLDS)}
        points = [counts_at(self.histogram, t) for t in MATLAB_THRESHOLDS]
        tpr = [c.tp / self.histogram.tumors for c in points]
        fpr = [c.fp / self.histogram.normals for c in points]
        return {
            "auc": float(np.trapezoid(tpr, fpr)),
            "reason": None,
            "thresholds": list(MATLAB_THRESHOLDS),
            "method": "trapezoids between 13 thresholds, as MathWorks' example; compare with patch.auc, which is exact",
        }


RATIOS: dict[str, Callable[[Counts], float | None]] = {
    "sensitivity": lambda c: _ratio(c.tp, c.tp + c.fn),
    "specificity": lambda c: _ratio(c.tn, c.tn + c.fp),
    "precision": lambda c: _ratio(c.tp, c.tp + c.fp),
    "f1": lambda c: _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn),
}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _reason(normals: int, tumors: int, what: str) -> str | None:
    absent = [name for name, count in (("normal", normals), ("tumour", tumors)) if not count]
    return f"there are no {' and no '.join(absent)} {what}" if absent else None


def _files_of(slide: str, confusion: Path, detections: Path) -> tuple[Path, Path, Path]:
    return confusion / f"{slide}.json", confusion / f"{slide}.scores.parquet", detections / f"{slide}.json"


def _load(row: SlideRow, counted: Path, scores: Path, detected: Path) -> Scored:
    return Scored(row, read_receipt(counted, "confusion"), read_receipt(detected, "detect"), *read_scores(scores))


def _common_model(slides: Sequence[Scored]) -> str | None:
    models = {s.confusion["model_sha256"]: s.row.slide for s in slides}
    if len(models) > 1:
        (a, first), (b, second), *_ = models.items()
        raise StoreError(
            f"{first} was predicted by the model {a[:12]}, {second} by {b[:12]}",
            remedy="Run the stage heatmap again for all slides",
        )
    return next(iter(models), None)


def _aligned(slides: Sequence[Scored]) -> tuple[Histogram, NDArray[np.int64], NDArray[np.int64]]:
    """The pooled histogram, and counts by slide (slides, scores) on its values."""
    steps = np.unique(np.concatenate([np.zeros(0, np.int64), *(s.steps for s in slides)]))
    normal, tumor = np.zeros((2, len(slides), len(steps)), np.int64)
    for k, s in enumerate(slides):
        at = np.searchsorted(steps, s.steps)
        normal[k, at], tumor[k, at] = s.normal, s.tumor
    # As the heatmap stores them, so that a threshold means the same here and there.
    values = (steps.astype(np.float32) / np.float32(STEPS)).astype(np.float64)
    return Histogram(values, normal.sum(axis=0), tumor.sum(axis=0)), normal, tumor


def _cohort(
    sheet: Sheet, slides: Sequence[Scored], excluded: Sequence[str], missing: Sequence[str], options: EvaluateOptions
) -> Figures:
    return {
        "name": options.cohort_name,
        "synthetic": options.synthetic,
        "complete": not missing,
        "missing": list(missing),
        "excluded": list(excluded),
        "test_slides": [s.row.slide for s in slides],
        "slides": {split: len(sheet.of_split(split)) for split in ("train", "validation", "test")},
    }


def _write(output: Path, metrics: Figures, evaluation: Evaluation) -> None:
    slides, histogram, synthetic = evaluation.slides, evaluation.histogram, metrics["cohort"]["synthetic"]
    both = histogram.normals > 0 and histogram.tumors > 0
    roc = thinned(roc_curve(histogram), _CURVE_POINTS) if both else None
    pr = thinned(pr_curve(histogram), _CURVE_POINTS) if histogram.tumors else None
    lesions = froc(evaluation.hits())
    write_text(output / "roc.csv", _curve_csv(("threshold", "false_positive_rate", "true_positive_rate"), roc))
    write_text(output / "pr.csv", _curve_csv(("threshold", "recall", "precision"), pr))
    points = None if lesions is None else Curve(lesions.threshold, lesions.false_positives, lesions.sensitivity)
    write_text(output / "froc.csv", _curve_csv(("threshold", "false_positives_per_slide", "sensitivity"), points))
    write_text(output / "slides.csv", _slides_csv(slides))
    patch, slide, lesion = metrics["patch"], metrics["slide"], metrics["lesion"]
    n = f"{patch['n_tumor']:,} tumour and {patch['n_normal']:,} normal patches"
    threshold = (metrics["operating_point"] or {}).get("threshold", float("nan"))
    figures = {
        "roc.png": roc_figure(roc, f"patch AUC {said(patch, 'auc')}\n{n}", synthetic),
        "pr.png": pr_figure(pr, f"average precision {_number(patch['average_precision'])}\n{n}", synthetic),
        "froc.png": froc_figure(
            None if points is None else points.x,
            None if points is None else points.y,
            f"FROC {said(lesion, 'froc')}\n{lesion['n_lesions']} lesions, {lesion['n_slides']} slides",
            synthetic,
        ),
        "confusion.png": confusion_chart(evaluation.counts, threshold, synthetic),
    }
    for name, figure in figures.items():
        with publish(output / name) as partial:
            figure.savefig(partial, format="png")
    write_text(output / "metrics.json", canonical_json(metrics))
    log.info(
        "%d test slides: patch AUC %s, slide AUC %s, FROC %s",
        len(slides), said(patch, "auc"), said(slide, "auc"), said(lesion, "froc"),
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "not computed" if value is None else f"{value:.4f}"


def _curve_csv(header: tuple[str, str, str], curve: Curve | None) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    if curve is not None:
        rows = zip(curve.threshold, curve.x, curve.y, strict=True)
        writer.writerows([f"{value:.10g}" for value in row] for row in rows)
    return text.getvalue()


def _slides_csv(slides: Sequence[Scored]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["slide", "label", "centre", "patient", "score", "tp", "fp", "fn", "tn", "auc", "detections", "lesions"]
    writer.writerow([*head, "lesions_hit"])
    for s in slides:
        counts = counts_of(s.confusion)
        own = auc(Histogram(s.steps.astype(np.float64), s.normal, s.tumor))
        lesions = s.detections["lesions"]
        writer.writerow(
            [s.row.slide, s.row.label, s.row.centre, s.row.patient, _cell(s.confusion["slide_score"])]
            + [counts.tp, counts.fp, counts.fn, counts.tn, _cell(own), s.detections["detections"]]
            + ([None, None] if lesions is None else [len(lesions), sum(c > 0 for c in lesions)])
        )
    return text.getvalue()


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"
