"""The figures that the stage evaluate writes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from wsi_pipeline.evaluation.cohort_metrics import Curves
from wsi_pipeline.evaluation.summary import Figures, format_figure
from wsi_pipeline.metrics.curves import ConfusionCounts
from wsi_pipeline.plots.figures import (
    cohort_table,
    confusion_matrix,
    froc_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
)


def evaluation_figures(
    metrics: Figures, curves: Curves, counts: ConfusionCounts, cohort_rows: Sequence[Sequence[str]]
) -> dict[str, Figure]:
    """The figures of an evaluation by name; their titles quote `metrics`."""
    patch = metrics["patch"]
    lesion = metrics["lesion"]
    calibration = metrics["calibration"]
    synthetic = metrics["cohort"]["synthetic"]
    n = f"{patch['n_tumor']:,} tumour and {patch['n_normal']:,} normal patches"
    threshold = (metrics["operating_point"] or {}).get("threshold", float("nan"))
    precision = patch["average_precision"]
    return {
        "roc": roc_figure(curves.roc, curves.roc_band, f"patch AUC {format_figure(patch, 'auc')}\n{n}", synthetic),
        "pr": pr_figure(
            curves.pr,
            f"average precision {'not computed' if precision is None else f'{precision:.4f}'}\n{n}",
            synthetic,
        ),
        "froc": froc_figure(
            curves.froc,
            f"FROC {format_figure(lesion, 'froc')}; {lesion['n_lesions']} lesions, {lesion['n_slides']} slides\n"
            f"over all thresholds {format_figure(lesion['all_thresholds'], 'froc')}",
            synthetic,
        ),
        "reliability": reliability_figure(
            curves.reliability,
            curves.reliability_at_temperature,
            f"calibration error {format_figure(calibration, 'expected_calibration_error')}\n{n}",
            synthetic,
        ),
        "confusion": confusion_matrix(counts, threshold, synthetic),
        "cohort": cohort_table(cohort_rows, f"Cohort {metrics['cohort']['name']}", synthetic),
    }
