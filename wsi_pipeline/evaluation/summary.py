"""The main figures of an evaluation, for a terminal and for the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import StoreError

SYNTHETIC = "Synthetic slides, drawn by a program: not tissue"

Figures = dict[str, Any]


def read_metrics(path: Path) -> Figures:
    """A `metrics.json`; `StoreError` where there is none."""
    try:
        metrics: Figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: no metrics ({error})", remedy="Run the stage evaluate first") from error
    return metrics


def format_figure(figures: Figures, key: str) -> str:
    """A figure with its confidence interval, or the reason why it was not computed."""
    if figures[key] is None:
        return f"not computed ({figures.get('reason') or 'nothing to divide by'})"
    return f"{figures[key]:.4f}{_interval_text(figures, key)}"


def format_difference(figures: Figures) -> str:
    """The key `difference` with its sign and its interval, or the reason why it was not computed."""
    if figures["difference"] is None:
        return f"not computed ({figures['reason']})"
    interval, reason = figures["difference_interval"], figures.get("difference_interval_reason")
    limits = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else f" ({reason})" if reason else ""
    return f"{figures['difference']:+.4f}{limits}"


def _interval_text(figures: Figures, key: str) -> str:
    interval, reason = figures.get(f"{key}_interval"), figures.get(f"{key}_interval_reason")
    if not interval:
        return f" ({reason})" if reason else ""
    low, high = interval
    # A figure of 0 or 1 has a one-sided bound. Rounding must not turn it into 1.
    if figures[key] == high:
        return f" (at least {math.floor(low * 1000) / 1000:.3f})"
    if figures[key] == low:
        return f" (at most {math.ceil(high * 1000) / 1000:.3f})"
    return f" ({low:.3f} to {high:.3f})"


def headline(metrics: Figures) -> list[tuple[str, str, str]]:
    """Name, value and n of each main figure."""
    patch, slide, lesion, confusion = (metrics[k] for k in ("patch", "slide", "lesion", "confusion"))
    calibration = metrics["calibration"]
    patches = f"{patch['n_tumor']:,} tumour, {patch['n_normal']:,} normal patches of {patch['n_slides']} slides"
    ratios = [
        (label, format_figure(confusion, key), f"patches {operating_point(metrics)}{_of_set(confusion)}")
        for label, key in (
            ("Sensitivity", "sensitivity"),
            ("Specificity", "specificity"),
            ("Precision", "precision"),
            ("F1", "f1"),
        )
    ]
    return [
        ("Patch AUC", format_figure(patch, "auc"), patches + _of_set(patch)),
        (
            "Slide AUC",
            format_figure(slide, "auc"),
            f"{slide['n_tumor']} tumour, {slide['n_normal']} normal slides{_of_set(slide)}",
        ),
        (
            "FROC score",
            format_figure(lesion, "froc"),
            f"{lesion['n_lesions']} lesions on {lesion['n_slides']} slides{_of_set(lesion)}; "
            f"over all thresholds {format_figure(lesion['all_thresholds'], 'froc')}",
        ),
        *ratios,
        (
            "Calibration",
            format_figure(calibration, "expected_calibration_error"),
            f"expected error, {calibration['n_patches']:,} patches{_of_set(calibration)}",
        ),
    ]


def operating_point(metrics: Figures) -> str:
    """The threshold and where it comes from."""
    point = metrics["operating_point"]
    if point is None:
        return "without a threshold"
    origin = point["chosen_on"]
    if "n_slides" in point:
        origin = f"{point['rule']} on {point['n_slides']} {origin}"
    return f"at threshold {point['threshold']:.4g}, {origin}"


def _of_set(figures: Figures) -> str:
    """Which of the test slides the figure rests on, where that is not all of them or has a name."""
    left_out = figures["left_out"]
    if figures["slide_set"] not in (None, "all"):
        return f" ({figures['slide_set']})"
    if not left_out:
        return ""
    return f" (without {', '.join(left_out)})" if len(left_out) < 4 else f" (without {len(left_out)} test slides)"


def unread_text(unread: dict[str, int]) -> str:
    """Which slides have how many positions that could not be read."""
    slides = ", ".join(f"{slide} ({count})" for slide, count in unread.items())
    return f"positions on damaged chunks, which no figure counts: {slides}"


def summary_text(metrics_path: Path, report: Path) -> str:
    """A few lines: figures, warnings, where the report is."""
    metrics = read_metrics(metrics_path)
    cohort = metrics["cohort"]
    lines = [f"{cohort['name']}: {len(cohort['test_slides'])} test slides"]
    if cohort["synthetic"]:
        lines.append(SYNTHETIC)
    if cohort["missing"]:
        lines.append(f"incomplete, without {', '.join(cohort['missing'])}")
    if cohort["unread_positions"]:
        lines.append(unread_text(cohort["unread_positions"]))
    lines += [f"  {name:<12} {value:<28} {n}" for name, value, n in headline(metrics)]
    return "\n".join([*lines, f"report: {report}"])
