"""Stage evaluate: all figures of a model on the test slides, each with its n and its interval.

Everything global is a sum over small files of the slides; no heatmap is read.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline import __version__
from wsi_pipeline.config import STEP_VERSIONS, EvaluateOptions
from wsi_pipeline.errors import IncompleteError, StoreError
from wsi_pipeline.evaluation import Evaluation, Scored
from wsi_pipeline.figures import confusion_chart, froc_figure, pr_figure, reliability_figure, roc_figure
from wsi_pipeline.files import canonical_json, digest_json, publish, write_text
from wsi_pipeline.metrics.curves import Curve, pr_curve, roc_curve, thinned
from wsi_pipeline.metrics.lesions import froc
from wsi_pipeline.metrics.pooled import PooledScores, Sketch
from wsi_pipeline.receipts import read_receipt
from wsi_pipeline.sheet import Sheet
from wsi_pipeline.stages.confusion import read_scores
from wsi_pipeline.summary import Figures, said

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_CURVE_POINTS = 5000


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
    slides, pooled, centres = list[Scored](), PooledScores(), dict[str, PooledScores]()
    for name in (s for s in wanted if s not in missing):
        counted, scores, detected = files[name]
        row, found = sheet[name], read_scores(scores)
        slides.append(Scored(row, read_receipt(counted, "confusion"), read_receipt(detected, "detect")))
        sketch = Sketch.of(*found)
        for part in (pooled, *([centres.setdefault(row.centre, PooledScores())] if row.centre else [])):
            part.add(*found, sketch)
    model = _common_model(slides)
    if missing:
        log.warning("without results: %s", ", ".join(missing))
    evaluation = Evaluation(slides, pooled, centres, options)
    metrics = evaluation.metrics()
    scored = {s.row.slide for s in slides}
    for level in ("patch", "calibration", "confusion", "slide", "lesion"):
        metrics[level] |= sheet.left_out(scored - set(metrics[level].get("not_scored", ())), options.test_set)
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


def _files_of(slide: str, confusion: Path, detections: Path) -> tuple[Path, Path, Path]:
    return confusion / f"{slide}.json", confusion / f"{slide}.scores.parquet", detections / f"{slide}.json"


def _common_model(slides: Sequence[Scored]) -> str | None:
    models = {s.confusion["model_sha256"]: s.row.slide for s in slides}
    if len(models) > 1:
        (a, first), (b, second), *_ = models.items()
        raise StoreError(
            f"{first} was predicted by the model {a[:12]}, {second} by {b[:12]}",
            remedy="Run the stage heatmap again for all slides",
        )
    return next(iter(models), None)


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
    write_text(output / "slides.csv", _slides_csv(evaluation))
    write_text(output / "reliability.csv", _reliability_csv(evaluation))
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
        "reliability.png": reliability_figure(
            evaluation.reliability(),
            f"calibration error {said(metrics['calibration'], 'expected_calibration_error')}\n{n}",
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


def _reliability_csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("from", "to", "patches", "mean_score", "share_of_tumor"))
    for low, high, n, score, share in evaluation.reliability():
        writer.writerow((f"{low:.6g}", f"{high:.6g}", n, _cell(score), _cell(share)))
    return text.getvalue()


def _slides_csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["slide", "label", "centre", "patient", "score", "tp", "fp", "fn", "tn", "auc", "detections", "lesions"]
    writer.writerow([*head, "lesions_hit"])
    for s, area in zip(evaluation.slides, evaluation.pooled.aucs.tolist(), strict=True):
        counts, own = s.counts, None if math.isnan(area) else area
        lesions = s.detections["lesions"]
        writer.writerow(
            [s.row.slide, s.row.label, s.row.centre, s.row.patient, _cell(s.confusion["slide_score"])]
            + [counts.tp, counts.fp, counts.fn, counts.tn, _cell(own), s.detections["detections"]]
            + ([None, None] if lesions is None else [len(lesions), sum(c > 0 for c in lesions)])
        )
    return text.getvalue()


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"
