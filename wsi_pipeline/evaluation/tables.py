"""The tables of an evaluation, as CSV. `metrics.json` has their digests, against tables of another evaluation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.special import expit

from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.cohort_metrics import Curves, Evaluation
from wsi_pipeline.evaluation.slide_results import SlideResult, hits_of
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import digest_bytes
from wsi_pipeline.metrics.calibration import Bin
from wsi_pipeline.metrics.curves import Band, Curve

_SLIDES = (
    "slide",
    "label",
    "centre",
    "patient",
    "score",
    "tp",
    "fp",
    "fn",
    "tn",
    "auc",
    "detections",
    "lesions",
    "lesions_hit",
)


def evaluation_tables(evaluation: Evaluation, curves: Curves) -> dict[str, str]:
    """The text of each table by file name."""
    areas = [None if math.isnan(area) else area for area in evaluation.pooled.aucs.tolist()]
    return {
        "roc.csv": curve_table("false_positive_rate", "true_positive_rate", curves.roc),
        "roc_band.csv": band_table(curves.roc_band),
        "pr.csv": curve_table("recall", "precision", curves.pr),
        "froc.csv": curve_table("false_positives_per_slide", "sensitivity", curves.froc),
        "reliability.csv": reliability_table(curves.reliability),
        "slides.csv": slides_table(evaluation.slides, evaluation.slide_scores.values, areas),
    }


def write_tables(folder: Path, tables: Mapping[str, str]) -> dict[str, str]:
    """Write tables into a folder. Returns their SHA-256 by name, for `provenance.tables_sha256` of `metrics.json`."""
    for name, text in tables.items():
        write_text(folder / name, text)
    return {name: digest_bytes(text.encode()) for name, text in tables.items()}


def read_table(folder: Path, name: str, metrics: Figures) -> str:
    """The text of a table. Raises `StoreError` unless it was written with these metrics."""
    path, remedy = folder / name, "Run the stage evaluate again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})", remedy=remedy) from error
    if digest_bytes(content) != metrics["provenance"].get("tables_sha256", {}).get(name):
        raise StoreError(f"{path}: not the table that {folder / 'metrics.json'} was written with", remedy=remedy)
    return content.decode()


def curve_table(x: str, y: str, curve: Curve | None) -> str:
    """Threshold (probability and log odds), x and y of each point; the header alone for no curve."""
    columns = () if curve is None else (expit(curve.threshold), curve.threshold, curve.x, curve.y)
    points = zip(*columns, strict=True)
    return _csv(("threshold", "threshold_log_odds", x, y), ([f"{value:.10g}" for value in point] for point in points))


def band_table(band: Band | None) -> str:
    """Limits of the true positive rate at each false positive rate; the header alone for no band."""
    points = () if band is None else zip(band.x, band.low, band.high, strict=True)
    head = "false_positive_rate", "true_positive_rate_low", "true_positive_rate_high"
    return _csv(head, ([f"{value:.6f}" for value in point] for point in points))


def reliability_table(bins: Iterable[Bin]) -> str:
    """Limits, patches, mean score and share of tumour patches of each bin of scores."""
    head = "from", "to", "patches", "mean_score", "share_of_tumor"
    return _csv(head, ((f"{low:.6g}", f"{high:.6g}", n, _cell(a), _cell(b)) for low, high, n, a, b in bins))


def slides_table(
    slides: Sequence[SlideResult], scores: Mapping[str, float | None], areas: Sequence[float | None]
) -> str:
    """Score, confusion at the operating point, patch AUC and lesions of each slide."""
    return _csv(_SLIDES, (_row(s, scores[s.row.slide], area) for s, area in zip(slides, areas, strict=True)))


def comparison_table(differences: Mapping[str, Sequence[Figures]], values: Mapping[str, Mapping[str, Figures]]) -> str:
    """A row for each figure and pair of models; `values` has the figures of each model by name."""
    columns = ("difference", "standard_error", "p_value", "p_adjusted")

    def cells(name: str, one: Figures) -> list[Any]:
        low, high = one["difference_interval"] or (None, None)
        first, second = (values[model][name]["value"] for model in one["models"])
        reason = one["reason"] or one["difference_interval_reason"]
        return [name, *one["models"], first, second, low, high, *(one[column] for column in columns), reason]

    head = ("figure", "first", "second", "value_first", "value_second", "low", "high", *columns, "reason")
    return _csv(head, (cells(name, one) for name, pairs in differences.items() for one in pairs))


def _row(slide: SlideResult, score: float | None, area: float | None) -> list[Any]:
    row = slide.row
    counts = slide.counts
    hits = hits_of(slide.detections)
    return [
        row.slide,
        row.label,
        row.centre,
        row.patient,
        # All digits of a float32: the order of slides is that of these scores.
        None if score is None else f"{score:.9g}",
        counts.tp,
        counts.fp,
        counts.fn,
        counts.tn,
        _cell(area),
        slide.detections.detections,
        *((None, None) if hits is None else (len(hits.lesions), len(hits.hits))),
    ]


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"
