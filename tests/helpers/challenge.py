"""The evaluation of detections by the published protocol of Camelyon16, written out plainly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage import measure

# False positives per slide at which the score takes the sensitivity.
LIMITS = (0.25, 0.5, 1, 2, 4, 8)


@dataclass
class Case:
    """A slide: label image of its mask (of zeros for a normal slide), labels of isolated cells, (confidence, x, y)."""

    labels: np.ndarray
    isolated: set[int]
    points: list[tuple[float, int, int]]


def official_curve(cases: list[Case], pixel: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """False positives per slide and sensitivity by falling number of detections, as the challenge's rules say."""
    false, listed, lesions = [], [], 0
    for case in cases:
        highest = dict.fromkeys(range(1, int(case.labels.max(initial=0)) + 1), 0.0)
        for confidence, x, y in case.points:
            label = int(case.labels[y // pixel, x // pixel])
            if label == 0:
                false.append(confidence)
            elif label not in case.isolated:
                highest[label] = max(highest[label], confidence)
        # Each label has an entry: 0 for a missed lesion, and for isolated cells always.
        listed += highest.values()
        lesions += len(highest) - len(case.isolated)
    thresholds = sorted({*false, *listed})[1:]
    counts = [(sum(c >= t for c in false), sum(c >= t for c in listed)) for t in thresholds]
    per_slide, found = np.array([*counts, (0, 0)]).T
    return per_slide / len(cases), found / lesions if lesions else np.full(len(found), np.nan)


def official_score(cases: list[Case], pixel: int = 1) -> float:
    per_slide, sensitivity = official_curve(cases, pixel)
    return float(np.mean(np.interp(LIMITS, per_slide[::-1], sensitivity[::-1])))


def official_case(mask: np.ndarray, points: list[tuple[float, int, int]]) -> Case:
    """The labels of a mask of level 5 by the rules of the challenge, at its 0.243 um per pixel of level 0."""
    pixel_um = 0.243 * 2**5
    near = ndimage.distance_transform_edt(np.where(mask, 0, 255)) < 75 / (2 * pixel_um)
    labels = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    regions = measure.regionprops(labels)
    return Case(labels, {r.label for r in regions if r.axis_major_length < 275 / pixel_um}, points)
