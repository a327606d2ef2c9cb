"""The tables of an evaluation, as CSV. `metrics.json` has their digests, so that none of another evaluation is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.evaluation import Scored
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import digest_bytes
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


def write_tables(folder: Path, tables: Mapping[str, str]) -> dict[str, str]:
    """Write each table into the folder; their SHA-256 by name, for `provenance.tables_sha256` of `metrics.json`."""
    for name, text in tables.items():
        write_text(folder / name, text)
    return {name: digest_bytes(text.encode()) for name, text in tables.items()}


def read_table(folder: Path, name: str, metrics: Figures) -> str:
    """The text of a table that was written with these metrics; `StoreError` where it is another, or none."""
    path, remedy = folder / name, "Run the stage evaluate again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})", remedy=remedy) from error
    if digest_bytes(content) != metrics["provenance"].get("tables_sha256", {}).get(name):
        raise StoreError(f"{path}: not the table that {folder / 'metrics.json'} was written with", remedy=remedy)
    return content.decode()


def curve_table(x: str, y: str, curve: Curve | None) -> str:
    """Threshold, x and y of each point; the head only where there is no curve."""
    points = () if curve is None else zip(curve.threshold, curve.x, curve.y, strict=True)
    return _csv(("threshold", x, y), ([f"{value:.10g}" for value in point] for point in points))


def band_table(band: Band | None) -> str:
    """Limits of the ROC's true positive rate at false positive rates; the head only where there is no band."""
    points = () if band is None else zip(band.x, band.low, band.high, strict=True)
    head = "false_positive_rate", "true_positive_rate_low", "true_positive_rate_high"
    return _csv(head, ([f"{value:.6f}" for value in point] for point in points))


def reliability_table(bins: Iterable[tuple[float, float, int, float | None, float | None]]) -> str:
    """Of each bin of scores its limits, patches, mean score and share of tumour patches."""
    head = "from", "to", "patches", "mean_score", "share_of_tumor"
    return _csv(head, ((f"{low:.6g}", f"{high:.6g}", n, _cell(a), _cell(b)) for low, high, n, a, b in bins))


def slides_table(slides: Sequence[Scored], scores: Mapping[str, float | None], areas: Sequence[float | None]) -> str:
    """Score, counts at the operating point, area under the ROC and lesions of each slide."""
    return _csv(_SLIDES, (_row(s, scores[s.row.slide], area) for s, area in zip(slides, areas, strict=True)))


def _row(slide: Scored, score: float | None, area: float | None) -> list[Any]:
    row, counts, lesions = slide.row, slide.counts, slide.detections["lesions"]
    return [
        row.slide,
        row.label,
        row.centre,
        row.patient,
        _cell(score),
        counts.tp,
        counts.fp,
        counts.fn,
        counts.tn,
        _cell(area),
        slide.detections["detections"],
        *((None, None) if lesions is None else (len(lesions), sum(c > 0 for c in lesions))),
    ]


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"
