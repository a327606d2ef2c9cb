"""Pictures of slides and what is laid over them, as (h, w, 3) uint8 arrays."""

from __future__ import annotations

from typing import TypeVar

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]
Alpha = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)

TISSUE_COLOR = (0, 114, 178)
TUMOR_COLOR = (230, 25, 25)
ENCLOSED_COLOR = (0, 158, 60)
IGNORED_COLOR = (128, 128, 128)
# Of probabilities, in all figures.
HEATMAP_COLOR_MAP = "viridis"
# Where one may choose; who is colour-blind tells the colours of all but the last apart.
_COLOR_MAPS = (HEATMAP_COLOR_MAP, "cividis", "magma", "turbo")
# The example's colours of false positives, false negatives and true positives.
CONFUSION_COLORS = {1: (0, 255, 255), 2: (255, 255, 0), 3: (255, 0, 0)}


def resample_nearest(mask: NDArray[T], mask_mpp: float, picture: RgbImage, mpp: float) -> NDArray[T]:
    """`mask` at the pixels of a picture of scale `mpp`, by the nearest mask pixel."""
    rows = np.clip(((np.arange(picture.shape[0]) + 0.5) * mpp / mask_mpp).astype(int), 0, mask.shape[0] - 1)
    columns = np.clip(((np.arange(picture.shape[1]) + 0.5) * mpp / mask_mpp).astype(int), 0, mask.shape[1] - 1)
    picked: NDArray[T] = mask[rows[:, None], columns[None, :]]
    return picked


def scale_bar_um(most_um: float) -> float:
    """The longest round length (1, 2 or 5 times a power of ten) that is not longer, um."""
    power = 10.0 ** np.floor(np.log10(most_um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most_um))


def format_length(um: float) -> str:
    """A round length in um or mm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def blend(picture: RgbImage, color: RgbImage, alpha: Alpha) -> RgbImage:
    """`color` over the picture with opacity `alpha` (h, w), 0 to 1."""
    mixed = picture * (1 - alpha[..., None]) + color * alpha[..., None]
    return (mixed + 0.5).astype(np.uint8)


def heatmap_palette(name: str = HEATMAP_COLOR_MAP) -> NDArray[np.uint8]:
    """Colours of the probabilities k / 255, (256, 3)."""
    return (mpl.colormaps[name](np.arange(256))[:, :3] * 255 + 0.5).astype(np.uint8)


def heatmap_palettes() -> dict[str, list[list[int]]]:
    """The palettes of all colour maps, for pages that let choose."""
    return {name: heatmap_palette(name).tolist() for name in _COLOR_MAPS}


def color_heatmap(heat: NDArray[np.float32], opacity: float = 0.6) -> tuple[RgbImage, Alpha]:
    """Colours and opacity of probabilities: fainter where they are low, clear where there is none."""
    known = np.isfinite(heat)
    index = (np.nan_to_num(heat) * 255 + 0.5).astype(np.uint8)
    return heatmap_palette()[index], np.where(known, opacity * (0.2 + 0.8 * np.nan_to_num(heat)), 0).astype(np.float32)


def color_confusion(codes: NDArray[np.uint8], opacity: float = 0.5) -> tuple[RgbImage, Alpha]:
    """Colours and opacity of confusion codes: FP cyan, FN yellow, TP red, the rest clear."""
    color = np.zeros((*codes.shape, 3), np.uint8)
    alpha = np.zeros(codes.shape, np.float32)
    for code, rgb in CONFUSION_COLORS.items():
        color[codes == code] = rgb
        alpha[codes == code] = opacity
    return color, alpha
