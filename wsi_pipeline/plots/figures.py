"""Figures (matplotlib), sizes in mm, in the colour-blind safe palette of Okabe and Ito.

Each function returns a `Figure`; `save_figure` writes it. Fonts and line widths are set in `figures.mplstyle`.
`synthetic` adds a note that the slides are synthetic.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsi_pipeline.evaluation.summary import SYNTHETIC
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.masks.label_images import AnyImage, LabelOverview
from wsi_pipeline.plots.colors import (
    HEATMAP_COLOR_MAP,
    RgbImage,
    blend,
    color_confusion,
    color_heatmap,
    format_length,
    resample_nearest,
    scale_bar_um,
)
from wsi_pipeline.plots.overlays import draw_outlines, truth_overlay
from wsi_pipeline.pyramid.ome_zarr import Image
from wsi_pipeline.pyramid.pyramid import Pyramid

if TYPE_CHECKING:
    # For types only: these modules import scipy.optimize, which would slow the start of stages that draw masks only.
    from wsi_pipeline.metrics.calibration import Bin
    from wsi_pipeline.metrics.curves import Band, ConfusionCounts, Curve

matplotlib.style.use(str(files("wsi_pipeline.plots").joinpath("figures.mplstyle")))

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PANEL_PX = 900
_MM = 1 / 25.4


def _figure(width_mm: float, height_mm: float, synthetic: bool = False) -> Figure:
    figure = Figure(figsize=(width_mm * _MM, height_mm * _MM), layout="constrained")
    if synthetic:
        figure.supxlabel(SYNTHETIC, fontsize=7, color=ORANGE)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to the PNG `path` and to a PDF beside it. Equal figures give equal bytes: no creation date."""
    for target, metadata in ((path.with_suffix(".pdf"), {"CreationDate": None}), (path, {})):
        # Render to memory first: on a full disk matplotlib's PDF writer would hide the OSError behind one of its own.
        rendered = io.BytesIO()
        figure.savefig(rendered, format=target.suffix[1:], metadata=metadata)
        with atomic_output(target) as partial:
            partial.write_bytes(rendered.getvalue())


def training_curves(history: Sequence[Mapping[str, Any]], synthetic: bool) -> Figure:
    """Training loss, validation loss and validation AUC against the step.

    `history`: rows with `step`, `train_loss`, `validation_loss` and `validation_auc`, the latter two None in steps
    without a validation.
    """
    figure = _figure(160, 70, synthetic)
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in history]
    left.plot(steps, [row["train_loss"] for row in history], color=BLUE, marker=".", label="training")
    _plot_validations(left, history, "validation_loss")
    left.set(xlabel="step", ylabel="loss (cross-entropy)")
    left.legend(frameon=False)
    _plot_validations(right, history, "validation_auc")
    right.set(xlabel="step", ylabel="AUC of validation patches", ylim=(0, 1.02))
    return figure


def patch_grid(rows: Sequence[NDArray[np.uint8]], names: Sequence[str], synthetic: bool) -> Figure:
    """One row of patches for each array (n, h, w, 3) of `rows`, titled by `names`."""
    figure = _figure(180, 56 if synthetic else 52, synthetic)
    for axes, patches, name in zip(figure.subplots(len(rows), 1), rows, names, strict=True):
        gap = np.full((patches.shape[1], patches.shape[2] // 20, 3), 255, np.uint8)
        parts = [part for patch in patches for part in (patch, gap)][:-1]
        axes.imshow(np.concatenate(parts, axis=1), interpolation="nearest")
        axes.set_title(name, fontsize=7, loc="left")
        axes.set_axis_off()
    return figure


def _plot_validations(axes: Axes, history: Sequence[Mapping[str, Any]], key: str) -> None:
    points = [(row["step"], row[key]) for row in history if row[key] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=ORANGE, marker=".", label="validation")
    else:
        axes.text(0.5, 0.5, "no validation", transform=axes.transAxes, ha="center")


def slide_figure(title: str, picture: RgbImage, mpp: float, synthetic: bool) -> Figure:
    """A thumbnail of a slide (scale `mpp`, um per pixel) with a scale bar."""
    width_mm = 120
    height_mm = width_mm * picture.shape[0] / picture.shape[1] + (12 if synthetic else 7)
    figure = _figure(width_mm, height_mm, synthetic)
    axes = figure.subplots()
    _show(axes, picture, mpp, title)
    return figure


def _show(axes: Axes, picture: RgbImage, mpp: float, title: str) -> None:
    axes.imshow(picture, interpolation="antialiased")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
    scale_bar(axes, picture.shape[1], picture.shape[0], mpp)


def slide_panels(
    slide: str, pyramid: Pyramid, truth: AnyImage, heat: Image, confusion: Image, *, threshold: float, synthetic: bool
) -> Figure:
    """Truth, heatmap and confusion codes of one slide over its thumbnail, side by side."""
    picture, mpp = pyramid.thumbnail(PANEL_PX)
    probabilities = resample_to_thumbnail(heat, picture, mpp)
    codes = resample_to_thumbnail(confusion, picture, mpp)
    outlines = truth_overlay(LabelOverview.of(truth))
    panels = (
        (draw_outlines(pyramid, outlines, PANEL_PX)[0], "truth: tumour red, normal inside green"),
        (blend(picture, *color_heatmap(probabilities)), "tumour probability"),
        (blend(picture, *color_confusion(codes)), f"threshold {threshold:.4g}: TP red, FP cyan, FN yellow"),
    )
    width_mm = 240
    figure = _figure(width_mm, width_mm / 3 * picture.shape[0] / picture.shape[1] + 14, synthetic)
    figure.suptitle(slide, fontsize=9)
    for axes, (pixels, title) in zip(figure.subplots(1, 3), panels, strict=True):
        _show(axes, pixels, mpp, title)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), mpl.colormaps[HEATMAP_COLOR_MAP])
    figure.colorbar(scale, ax=figure.axes[2], fraction=0.03, pad=0.01, label="probability")
    return figure


def resample_to_thumbnail(image: Image, picture: RgbImage, mpp: float) -> NDArray[Any]:
    """A heatmap or confusion image resampled to the pixels of `picture` (scale `mpp`), (h, w).

    Each position covers a square of one stride around its centre. The margin left of and above the first position,
    where the stride is smaller than the patch, repeats the nearest position. Where the stride is larger, the first
    squares begin outside the slide and are cut off.
    """
    shift = round((image.first_centre_um - image.mpp / 2) / mpp)
    canvas = np.zeros((max(1, picture.shape[0] - shift), max(1, picture.shape[1] - shift), 1), np.uint8)
    resampled = resample_nearest(image.data, image.mpp, canvas, mpp)
    margin, cut = max(shift, 0), max(-shift, 0)
    resampled = np.pad(resampled[cut:, cut:], ((margin, 0), (margin, 0)), mode="edge")
    return resampled[: picture.shape[0], : picture.shape[1]]


def scale_bar(axes: Axes, width_px: int, height_px: int, mpp: float) -> None:
    """Draw a scale bar of a round length, at most a fifth of the picture's width."""
    length = scale_bar_um(width_px * mpp / 5)
    x, y = width_px * 0.03, height_px * 0.96
    axes.plot([x, x + length / mpp], [y, y], color="black", linewidth=2, solid_capstyle="butt")
    axes.text(x, y - height_px * 0.015, format_length(length), fontsize=6, va="bottom")


def roc_figure(curve: Curve | None, band: Band | None, title: str, synthetic: bool) -> Figure:
    """ROC curve over all scored patches, with the pointwise interval of the true positive rate."""
    figure = _figure(85, 85, synthetic)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--")
    if band is not None:
        label = f"{100 * band.level:.0f} % interval"
        axes.fill_between(band.x, band.low, band.high, color=BLUE, alpha=0.2, linewidth=0, label=label)
        axes.legend(frameon=False, loc="lower right")
    _plot_curve(axes, curve, BLUE)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_title(title, fontsize=8)
    return figure


def pr_figure(curve: Curve | None, title: str, synthetic: bool) -> Figure:
    """Precision-recall curve over all scored patches."""
    figure = _figure(85, 85, synthetic)
    axes = figure.subplots()
    _plot_curve(axes, curve, GREEN)
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_title(title, fontsize=8)
    return figure


def froc_figure(curve: Curve | None, title: str, synthetic: bool) -> Figure:
    """FROC curve: lesion sensitivity against the mean number of false positives per slide; None is not computable."""
    figure = _figure(85, 85, synthetic)
    axes = figure.subplots()
    if curve is None:
        axes.text(0.5, 0.5, "cannot be computed", transform=axes.transAxes, ha="center")
    else:
        axes.step(curve.x[::-1], curve.y[::-1], where="post", color=ORANGE)
    axes.set(
        xlabel="mean false positives per slide", ylabel="lesion sensitivity", xlim=(-0.05, 8.2), ylim=(-0.01, 1.02)
    )
    axes.set_title(title, fontsize=8)
    return figure


def _plot_curve(axes: Axes, curve: Curve | None, color: str) -> None:
    if curve is None:
        axes.text(0.5, 0.5, "cannot be computed", transform=axes.transAxes, ha="center")
    else:
        axes.plot(curve.x, curve.y, color=color)


def reliability_figure(bins: Sequence[Bin], scaled: Sequence[Bin], title: str, synthetic: bool) -> Figure:
    """Reliability diagram: share of tumour against the mean score of each bin, above a histogram of the scores.

    `scaled` has the bins of the temperature-scaled scores, and is empty where no temperature was fitted.
    """
    figure = _figure(90, 95, synthetic)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), color="0.6", linewidth=0.8, linestyle="--")
    for rows, color, label in ((bins, BLUE, "as predicted"), (scaled, ORANGE, "at the temperature")):
        points = [(score, share) for _, _, _, score, share in rows if score is not None and share is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker=".", label=label)
    if scaled:
        axes.legend(frameon=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share of tumour", title=title)
    low, high, counts = (np.array([one[k] for one in bins], float) for k in range(3))
    below.bar(low, counts, width=high - low, align="edge", color=BLUE, edgecolor="white", linewidth=0.5)
    below.set(xlabel="tumour probability", ylabel="patches")
    if counts.any():
        # A log axis that started at 1 would hide bins of a single patch.
        below.set(yscale="log", ylim=(0.5, None))
    return figure


def confusion_matrix(counts: ConfusionCounts, threshold: float, synthetic: bool) -> Figure:
    """Confusion matrix over all scored patches, normalised by the total and by the patches of each true class."""
    figure = _figure(170, 84, synthetic)
    cells = np.array([[counts.tn, counts.fp], [counts.fn, counts.tp]])
    of_class = cells.sum(axis=1, keepdims=True)
    titles = ("share of all patches", "share of the patches of a true class")
    for axes, total, title in zip(figure.subplots(1, 2), (cells.sum(), of_class), titles, strict=True):
        shares = cells / np.maximum(total, 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            text = f"{share:.4f}\n({cells[row, column]:,})"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
        names = ["normal", "tumour"]
        axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=names, yticklabels=names, xlabel="called", ylabel="true")
        axes.set_title(title)
    figure.suptitle(f"{counts.total:,} patches, threshold {threshold:.4g}")
    return figure


def cohort_table(rows: Sequence[Sequence[str]], title: str, synthetic: bool) -> Figure:
    """A table of text; the first row and the first column are headers."""
    figure = _figure(170, 14 + 7 * len(rows), synthetic)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title)
    table = axes.table([list(row) for row in rows], loc="center", cellLoc="right", edges="horizontal")
    table.auto_set_font_size(False)
    table.scale(1, 1.4)
    for (row, column), cell in table.get_celld().items():
        if row == 0 or column == 0:
            cell.set_text_props(weight="bold")
        if column == 0:
            cell.set_text_props(ha="left")
    return figure
