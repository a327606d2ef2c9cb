"""Augmentation of training patches, batch by batch on the network's device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.config import AugmentationOptions
from wsi_pipeline.model.device import to_device
from wsi_pipeline.seeds import generator

_LUMA = (0.299, 0.587, 0.114)
# RGB to YIQ (SMPTE 170M), where a change of hue is a rotation.
_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
# Optical densities (RGB) of haematoxylin, eosin and a residual stain
# (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001).
_STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
ORIENTATIONS = 8
_SHIFT_SHARE = 0.2
_DARKEST = 1 / 256

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AugmentationDraws:
    """Random numbers for the n patches of a step, functions of (seed, step) alone.

    `orientation` (n,) int64, 0 to 7; `colors` (4, n) in [-1, 1]: brightness, contrast, saturation, hue; `stains` (4, n)
    in [-1, 1]: gains of haematoxylin and eosin, then their shifts; `corners` (2, n) in [0, 1): position (y, x) of the
    crop within the stored border.
    """

    orientation: NDArray[np.int64]
    colors: Floats
    stains: Floats
    corners: Floats

    @classmethod
    def draw(cls, count: int, seed: int, step: int) -> Self:
        rng = generator(seed, "augment", step)
        orientation, colors = rng.integers(ORIENTATIONS, size=count), rng.uniform(-1, 1, (4, count))
        return cls(orientation, colors, rng.uniform(-1, 1, (4, count)), rng.random((2, count)))

    def subset(self, which: slice) -> AugmentationDraws:
        """Draws of a slice of the patches."""
        return AugmentationDraws(*(getattr(self, field.name)[..., which] for field in fields(self)))


def to_unit(pixels: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Pixels (n, h, w, 3) uint8 to (n, 3, h, w) float32 in [0, 1] on `device`, in channels-last memory format."""
    given = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
    on_device = given.to(device, non_blocking=True)
    return on_device.permute(0, 3, 1, 2).float().div_(255)


def to_input(unit: Tensor) -> Tensor:
    """Pixels in [0, 1] to the network's input range [-1, 1]."""
    return unit.mul(2).sub_(1).contiguous(memory_format=torch.channels_last)


def center_crops(pixels: Tensor, border_px: int) -> Tensor:
    """Patches (n, h, w, 3) without their stored border of `border_px` on each side."""
    return pixels[:, border_px : pixels.shape[1] - border_px, border_px : pixels.shape[2] - border_px]


def random_crops(unit: Tensor, border_px: int, draws: AugmentationDraws) -> Tensor:
    """Crop each patch (n, 3, h, w) by `2 * border_px` at its own random position."""
    if border_px == 0:
        return unit
    height, width = (edge - 2 * border_px for edge in unit.shape[2:])
    places = np.floor(draws.corners.T * (2 * border_px + 1)).astype(int).tolist()
    cut = [patch[:, y : y + height, x : x + width] for patch, (y, x) in zip(unit, places, strict=True)]
    return torch.stack(cut)


def augment(unit: Tensor, options: AugmentationOptions, draws: AugmentationDraws) -> Tensor:
    """Augmented copy of a batch (n, 3, h, w), values in [0, 1]: orientation, stains, colours."""
    shift, contrast, saturation, hue = draws.colors
    if options.orientations:
        unit = orient_each(unit, draws.orientation)
    if options.stain:
        unit = jitter_stains(unit, draws.stains * options.stain)
    matrix = _like(_color_matrices(saturation * options.saturation, hue * options.hue), unit)
    unit = torch.einsum("nij,njhw->nihw", matrix, unit)
    mean = unit.mean(dim=(1, 2, 3), keepdim=True)
    gain = _column(1 + contrast * options.contrast, unit)
    offset = _column(shift * options.brightness, unit)
    return ((unit - mean) * gain + mean + offset).clamp_(0, 1)


def orient_each(images: Tensor, orientation: NDArray[np.int64]) -> Tensor:
    """Turn each image (n, c, h, w) by its own orientation (n,), see `orient`."""
    out = torch.empty_like(images)
    for kind in np.unique(orientation):
        members = to_device(torch.from_numpy(np.flatnonzero(orientation == kind)), images.device)
        out[members] = orient(images[members], int(kind))
    return out


def orient(images: Tensor, kind: int) -> Tensor:
    """Rotate images (n, c, h, w) by `kind % 4` quarter turns; mirror them too where `kind` is 4 to 7."""
    turns = torch.rot90(images, kind % 4, dims=(2, 3))
    return turns.flip(3) if kind >= 4 else turns


def jitter_stains(unit: Tensor, changes: Floats) -> Tensor:
    """Stain augmentation of images (n, 3, h, w) in [0, 1] after Tellez et al. (IEEE Trans. Med. Imaging 37, 2018).

    `changes` (4, n): relative changes of the amounts of haematoxylin and of eosin, then additive changes, of which a
    fifth is added to the amount.
    """
    stains = np.array(_STAINS)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    gains = np.ones((changes.shape[1], 3))
    gains[:, :2] += changes[:2].T
    shifts = np.zeros_like(gains)
    shifts[:, :2] = _SHIFT_SHARE * changes[2:].T
    # Pixels are row vectors: amounts = density @ inverse(stains).
    turn = np.linalg.inv(stains) @ (gains[:, :, None] * stains)
    density = -torch.log(unit.clamp(min=_DARKEST))
    matrix = _like(turn.transpose(0, 2, 1), unit)
    added = _like(shifts @ stains, unit)[:, :, None, None]
    changed = torch.einsum("nij,njhw->nihw", matrix, density) + added
    return torch.exp(-changed).clamp_(0, 1)


def _like(values: Floats, images: Tensor) -> Tensor:
    """Values as a tensor of the images' dtype, on their device."""
    return to_device(torch.from_numpy(values).to(images.dtype), images.device)


def _column(values: Floats, images: Tensor) -> Tensor:
    return _like(values, images).view(-1, 1, 1, 1)


def _color_matrices(saturation: Floats, hue: Floats) -> Floats:
    """RGB matrices (n, 3, 3) that scale saturation by 1 + `saturation` and rotate hue by `hue` full turns."""
    to_yiq = np.array(_YIQ)
    cos, sin = np.cos(2 * math.pi * hue), np.sin(2 * math.pi * hue)
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    orient = np.linalg.inv(to_yiq) @ turn @ to_yiq
    gray = np.tile(np.array(_LUMA), (3, 1))
    scale = (1 + saturation)[:, None, None]
    matrices: Floats = (scale * np.eye(3) + (1 - scale) * gray) @ orient
    return matrices
