"""Stain normalisation after Macenko et al. (ISBI 2009), fitted once per slide.

Optical densities of tissue lie near the plane of haematoxylin and eosin. The two stains are the directions at the
edges of the cloud in that plane; the amounts of each are scaled so that their 99th percentiles, and the colours of
the stains, are the reference's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.pyramid.ome_zarr import Image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.receipts.slides import StainFacts
from wsi_pipeline.seeds import generator

log = logging.getLogger(__name__)

# The reference that is usual with this method: optical densities of haematoxylin and eosin and the 99th percentiles
# of their amounts.
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_MAXIMA = np.array([1.9705, 1.0308])

_WHITE = 240.0
_LEAST_DENSITY = 0.15
_PERCENTILE = 1.0
_LEAST_PIXELS = 1000
_SAMPLE_MPP = 1.0
_SAMPLES, _SAMPLE_PX = 32, 224
_DENSITY = -np.log((np.arange(256) + 1.0) / _WHITE)

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stains:
    """Haematoxylin and eosin of a slide: `vectors` (2, 3) of length 1, 99th percentiles of their amounts (2,)."""

    vectors: Floats
    maxima: Floats

    @classmethod
    def fit(cls, pixels: Pixels) -> Self | None:
        """From tissue pixels (n, 3); None where they are too few or have no two stains."""
        density = _DENSITY[pixels]
        density = density[(density > _LEAST_DENSITY).all(axis=1)]
        if len(density) < _LEAST_PIXELS:
            return None
        _, directions = np.linalg.eigh(np.cov(density.T))
        plane = directions[:, [2, 1]]
        # Densities are positive, so the main direction is too.
        plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
        angles = np.arctan2(*(density @ plane).T[::-1])
        edges = np.percentile(angles, [_PERCENTILE, 100 - _PERCENTILE])
        found = np.stack([np.cos(edges), np.sin(edges)], axis=1) @ plane.T
        # Haematoxylin takes more of the red light.
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
        """Pixels (..., 3) in the colours of the reference."""
        turn = np.linalg.pinv(self.vectors) @ ((REFERENCE_MAXIMA / self.maxima)[:, None] * REFERENCE)
        density = _DENSITY.astype(np.float32)[pixels] @ turn.astype(np.float32)
        out: Pixels = np.clip(np.rint(np.float32(_WHITE) * np.exp(-density) - 1), 0, 255).astype(np.uint8)
        return out


def identity(pixels: Pixels) -> Pixels:
    """Pixels as they are."""
    return pixels


def stain_normalizer(
    kind: str, slide: str, pyramid: Pyramid, tissue: Image
) -> tuple[Callable[[Pixels], Pixels], StainFacts | None]:
    """The function that normalizes patches of a slide by `kind` (none or macenko), and its stains for the receipt.

    Stains are None where nothing is normalized.
    """
    if kind == "none":
        return identity, None
    stains = fit_stains(slide, pyramid, tissue)
    if stains is None:
        log.warning("%s: no two stains were found, its colours are left as they are", slide)
        return identity, None
    return stains.normalize, stains.facts()


def fit_stains(slide: str, pyramid: Pyramid, tissue: Image) -> Stains | None:
    """Fit the stains of a slide to pixels of tissue sampled by a generator seeded by the slide's id."""
    rows, columns = np.nonzero(tissue.data)
    if not len(rows):
        return None
    rng = generator(0, "stain", slide)
    chosen = np.sort(rng.choice(len(rows), min(_SAMPLES, len(rows)), replace=False))
    spec = pyramid.patch_spec(_SAMPLE_PX, max(_SAMPLE_MPP, pyramid.mpp))
    scale, half = tissue.mpp / pyramid.mpp, spec.level0_px / 2
    x = np.rint((columns[chosen] + 0.5) * scale - half).astype(int)
    y = np.rint((rows[chosen] + 0.5) * scale - half).astype(int)
    return Stains.fit(pyramid.read_patches(x.tolist(), y.tolist(), spec).reshape(-1, 3))
