"""Stain normalisation after Macenko et al. (ISBI 2009), fitted once per slide.

The optical densities of tissue lie near the plane spanned by haematoxylin and eosin. The stain vectors are the extreme
directions of the point cloud in that plane. Normalisation replaces them with the reference vectors, and scales the
concentrations so that their 99th percentiles equal those of the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.morphology import MappedRows, Runs
from wsi_pipeline.pyramid.ome_zarr import Image, StoredImage
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.receipts.slides import StainFacts
from wsi_pipeline.seeds import generator

log = logging.getLogger(__name__)

# The customary reference of this method: stain vectors of haematoxylin and eosin, and the 99th percentiles of their
# concentrations.
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_MAXIMA = np.array([1.9705, 1.0308])

_WHITE = 240.0
_MIN_DENSITY = 0.15
_PERCENTILE = 1.0
_MIN_PIXELS = 1000
_SAMPLE_MPP = 1.0
_SAMPLES, _SAMPLE_PX = 32, 224
_DENSITY = -np.log((np.arange(256) + 1.0) / _WHITE)

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stains:
    """Haematoxylin and eosin of a slide: unit stain vectors (2, 3), and 99th percentiles of concentrations (2,)."""

    vectors: Floats
    maxima: Floats

    @classmethod
    def fit(cls, pixels: Pixels) -> Self | None:
        """Fit to tissue pixels (n, 3) uint8; None where they are too few or do not show two stains."""
        density = _DENSITY[pixels]
        density = density[(density > _MIN_DENSITY).all(axis=1)]
        if len(density) < _MIN_PIXELS:
            return None
        _, directions = np.linalg.eigh(np.cov(density.T))
        plane = directions[:, [2, 1]]
        # The sign of an eigenvector is arbitrary: choose the one along positive densities.
        plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
        angles = np.arctan2(*(density @ plane).T[::-1])
        edges = np.percentile(angles, [_PERCENTILE, 100 - _PERCENTILE])
        found = np.stack([np.cos(edges), np.sin(edges)], axis=1) @ plane.T
        # Haematoxylin absorbs more red light than eosin.
        vectors = found[np.argsort(-found[:, 0])]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if abs(np.linalg.det(vectors @ vectors.T)) < 1e-6:
            return None
        maxima = np.percentile(density @ np.linalg.pinv(vectors), 99, axis=0)
        return cls(vectors, maxima) if (maxima > 0).all() else None

    def facts(self) -> StainFacts:
        """The stains for a receipt, rounded to 6 digits."""
        return StainFacts(vectors=self.vectors.round(6).tolist(), maxima=self.maxima.round(6).tolist())

    def normalize(self, pixels: Pixels) -> Pixels:
        """Normalise pixels (..., 3) uint8 to the reference."""
        transform = np.linalg.pinv(self.vectors) @ ((REFERENCE_MAXIMA / self.maxima)[:, None] * REFERENCE)
        density = _DENSITY.astype(np.float32)[pixels] @ transform.astype(np.float32)
        out: Pixels = np.clip(np.rint(np.float32(_WHITE) * np.exp(-density) - 1), 0, 255).astype(np.uint8)
        return out


def identity(pixels: Pixels) -> Pixels:
    """Return the pixels unchanged."""
    return pixels


def stain_normalizer(
    kind: str, slide: str, pyramid: Pyramid, tissue: Image | StoredImage
) -> tuple[Callable[[Pixels], Pixels], StainFacts | None]:
    """The function that normalizes patches of a slide by `kind` (none or macenko), and its stains for the receipt.

    Stains are None where nothing is normalized.
    """
    if kind == "none":
        return identity, None
    stains = fit_stains(slide, pyramid, tissue)
    if stains is None:
        log.warning("%s: found no two stains, so its colours are not normalised", slide)
        return identity, None
    return stains.normalize, stains.facts()


def fit_stains(slide: str, pyramid: Pyramid, tissue: Image | StoredImage) -> Stains | None:
    """Fit the stains of a slide to pixels of tissue sampled by a generator seeded by the slide's id."""
    runs = Runs.of(MappedRows(tissue.data, lambda values: values > 0))
    pixels = np.cumsum(runs.lengths)
    if not len(runs):
        return None
    rng = generator(0, "stain", slide)
    chosen = np.sort(rng.choice(pixels[-1], min(_SAMPLES, pixels[-1]), replace=False))
    run = np.searchsorted(pixels, chosen, "right")
    rows, columns = runs.rows[run], runs.stops[run] - (pixels[run] - chosen)
    spec = pyramid.patch_spec(_SAMPLE_PX, max(_SAMPLE_MPP, pyramid.mpp))
    scale = tissue.mpp / pyramid.mpp
    half = spec.level0_px / 2
    x = np.rint((columns + 0.5) * scale - half).astype(int)
    y = np.rint((rows + 0.5) * scale - half).astype(int)
    return Stains.fit(pyramid.read_patches(x.tolist(), y.tolist(), spec).reshape(-1, 3))
