"""Features of a slide's heatmap for a classifier of slides.

A random forest over such features follows Wang et al. (arXiv:1606.05718, the winner of Camelyon16). The features are a
selection from their kinds: the share of positions called tumour, and the size, shape and mean score of the largest
connected area. Scores are log odds; those of a mean are of the mean probability.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit
from skimage.measure import regionprops

from wsi_pipeline.metrics.steps import log_odds_of, log_odds_of_mean
from wsi_pipeline.pyramid.ome_zarr import Image

THRESHOLDS = (0.5, 0.9)
_EIGHT = np.ones((3, 3), bool)


def slide_features(heat: Image) -> dict[str, float] | None:
    """Features of a heatmap of log odds by name, lengths in um and areas in mm²; None without predicted positions.

    Thresholds, and `standard_deviation`, are of probabilities.
    """
    known = np.isfinite(heat.data)
    if not known.any():
        return None
    scores = heat.data[known].astype(np.float64)
    out = {
        "maximum": float(scores.max()),
        "mean": log_odds_of_mean(scores),
        "standard_deviation": float(expit(scores).std()),
        "percentile_99": float(np.quantile(scores, 0.99)),
    }
    for threshold in THRESHOLDS:
        called = heat.data.astype(np.float64) >= log_odds_of(threshold)
        own = _areas(heat, called)
        own["share"] = float(called.sum() / known.sum())
        out |= {f"{name}_at_{threshold:g}": value for name, value in own.items()}
    return out


def _areas(heat: Image, called: NDArray[np.bool_]) -> dict[str, float]:
    pixel_mm2 = heat.mpp**2 / 1e6
    labels, number = ndimage.label(called, structure=_EIGHT)
    names = ("largest_mm2", "largest_axis_um", "largest_eccentricity", "largest_extent", "largest_mean", "second_mm2")
    if not number:
        return {"areas": 0.0, **dict.fromkeys(names, 0.0)}
    sizes = np.bincount(labels.ravel())[1:]
    # Ties go to the first in reading order.
    first = int(sizes.argmax())
    place = ndimage.find_objects(labels)[first]
    inside = labels[place] == first + 1
    (largest,) = regionprops(inside.astype(np.uint8))
    second = int(np.delete(sizes, first).max()) if number > 1 else 0
    values = (
        sizes[first] * pixel_mm2,
        largest.axis_major_length * heat.mpp,
        largest.eccentricity,
        largest.extent,
        log_odds_of_mean(heat.data[place][inside]),
        second * pixel_mm2,
    )
    return {"areas": float(number), **{name: float(value) for name, value in zip(names, values, strict=True)}}
