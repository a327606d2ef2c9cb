"""Random changes of training patches, in batches on the network's device."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.config import AugmentationOptions
from wsi_pipeline.seeds import generator

_LUMA = (0.299, 0.587, 0.114)
# RGB to YIQ, the colour space in which a turn of hue is a rotation (SMPTE 170M).
_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def to_unit(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) float32 in [0, 1], channels last in memory."""
    on_device = torch.from_numpy(pixels).to(device, non_blocking=True)
    return on_device.permute(0, 3, 1, 2).float().div_(255)


def to_input(unit: Tensor) -> Tensor:
    """Pixels in [0, 1] to the network's range [-1, 1]."""
    return unit.mul(2).sub_(1).contiguous(memory_format=torch.channels_last)


def centred(patches: NDArray[np.uint8], border_px: int) -> NDArray[np.uint8]:
    """Patches (n, h, w, 3) without the border that is stored around them."""
    return patches[:, border_px : patches.shape[1] - border_px, border_px : patches.shape[2] - border_px]


def jittered(patches: NDArray[np.uint8], border_px: int, seed: int, step: int) -> NDArray[np.uint8]:
    """Patches (n, h, w, 3) each cut out of its border at a random place, drawn from (seed, step)."""
    if border_px == 0:
        return patches
    height, width = (edge - 2 * border_px for edge in patches.shape[1:3])
    corners = generator(seed, "jitter", step).integers(0, 2 * border_px + 1, (len(patches), 2)).tolist()
    cut = [patch[y : y + height, x : x + width] for patch, (y, x) in zip(patches, corners, strict=True)]
    return np.stack(cut)


def augment(unit: Tensor, options: AugmentationOptions, seed: int, step: int) -> Tensor:
    """Change a batch (n, 3, h, w) in [0, 1] by draws that depend on (seed, step) alone."""
    rng = generator(seed, "augment", step)
    count = unit.shape[0]
    orientation = rng.integers(8, size=count)
    shift, contrast, saturation, hue = rng.uniform(-1, 1, (4, count))
    if options.orientations:
        unit = oriented(unit, orientation)
    matrix = _color_matrices(saturation * options.saturation, hue * options.hue).to(unit)
    unit = torch.einsum("nij,njhw->nihw", matrix, unit)
    mean = unit.mean(dim=(1, 2, 3), keepdim=True)
    gain = _column(1 + contrast * options.contrast, unit)
    offset = _column(shift * options.brightness, unit)
    return ((unit - mean) * gain + mean + offset).clamp_(0, 1)


def oriented(images: Tensor, orientation: NDArray[np.int64]) -> Tensor:
    """Each image turned by `orientation % 4` quarter turns and, from 4 on, mirrored."""
    out = torch.empty_like(images)
    for kind in np.unique(orientation):
        members = torch.from_numpy(np.flatnonzero(orientation == kind)).to(images.device)
        turned = torch.rot90(images[members], int(kind % 4), dims=(2, 3))
        out[members] = turned.flip(3) if kind >= 4 else turned
    return out


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like).view(-1, 1, 1, 1)


def _color_matrices(saturation: NDArray[np.float64], hue: NDArray[np.float64]) -> Tensor:
    """(n, 3, 3) matrices that scale saturation by 1 + `saturation` and turn hue by `hue` circles."""
    to_yiq = np.array(_YIQ)
    cos, sin = np.cos(2 * math.pi * hue), np.sin(2 * math.pi * hue)
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    turned = np.linalg.inv(to_yiq) @ turn @ to_yiq
    gray = np.tile(np.array(_LUMA), (3, 1))
    scale = (1 + saturation)[:, None, None]
    return torch.from_numpy((scale * np.eye(3) + (1 - scale) * gray) @ turned)
