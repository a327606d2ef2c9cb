"""Lesions, detections and FROC after the Camelyon16 protocol.

Source: the challenge's evaluation rules (Ehteshami Bejnordi et al., JAMA 318, 2017, supplement) and
its public evaluation script, as restated in `docs/metrics.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import regionprops

from wsi_pipeline.metrics.intervals import Weights

FALSE_POSITIVES_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NO_LESION = 0


@dataclass(frozen=True, slots=True)
class Lesions:
    """Label image (h, w) int32, 0 outside lesions, and the labels of isolated tumour cells."""

    labels: NDArray[np.int32]
    isolated: frozenset[int]

    @property
    def counted(self) -> list[int]:
        """Labels of the lesions that FROC counts, ascending: all but isolated tumour cells."""
        return [k for k in range(1, int(self.labels.max(initial=0)) + 1) if k not in self.isolated]


def find_lesions(tumor: NDArray[np.bool_], mpp: float, *, merge_um: float, itc_um: float) -> Lesions:
    """Lesions of a tumour mask (h, w): foci closer than `merge_um` are merged, and holes are filled.

    A lesion with a major axis shorter than `itc_um` counts as isolated tumour cells.
    """
    if not tumor.any():
        return Lesions(np.zeros(tumor.shape, np.int32), frozenset())
    near = ndimage.distance_transform_edt(~tumor) < merge_um / (2 * mpp)
    filled = ndimage.binary_fill_holes(near | tumor)
    labels, _ = ndimage.label(filled, structure=np.ones((3, 3), bool))
    regions = regionprops(labels)
    isolated = frozenset(int(r.label) for r in regions if r.axis_major_length < itc_um / mpp)
    return Lesions(labels.astype(np.int32), isolated)


@dataclass(frozen=True, slots=True)
class Detection:
    """A detected point; x and y are level-0 pixels."""

    confidence: float
    x: float
    y: float


def non_maximum_suppression(heat: NDArray[np.float32], radius: float, min_score: float) -> list[tuple[float, int, int]]:
    """Non-maximum suppression (Liu et al., arXiv:1703.02442): (score, column, row), highest first.

    Repeatedly takes the maximum and clears everything within `radius` pixels of it, until no value reaches
    `min_score`. Ties go to the first in reading order.
    """
    remaining = np.nan_to_num(heat.astype(np.float64), nan=-1.0)
    radius_px = int(radius)
    found = []
    while remaining.size:
        row, column = divmod(int(remaining.argmax()), remaining.shape[1])
        score = float(remaining[row, column])
        if score < min_score:
            break
        found.append((score, column, row))
        top = max(0, row - radius_px)
        left = max(0, column - radius_px)
        window = remaining[top : row + radius_px + 1, left : column + radius_px + 1]
        y, x = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
        window[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = -1.0
    return found


def component_maxima(heat: NDArray[np.float32], min_score: float) -> list[tuple[float, int, int]]:
    """The maximum of each 8-connected component at or above `min_score`: (score, column, row), highest first.

    Ties, within a component and between components, go to the first in reading order.
    """
    known = np.nan_to_num(heat.astype(np.float64), nan=-1.0)
    labels, _ = ndimage.label(known >= min_score, structure=np.ones((3, 3), bool))
    inside = np.flatnonzero(labels)
    descending = inside[np.argsort(-known.ravel()[inside], kind="stable")]
    _, first = np.unique(labels.ravel()[descending], return_index=True)
    found = []
    for index in descending[np.sort(first)].tolist():
        row, column = divmod(index, heat.shape[1])
        found.append((float(known[row, column]), column, row))
    return found


@dataclass(frozen=True, slots=True)
class SlideHits:
    """Detections of one slide matched with its lesions.

    `lesions` holds the highest confidence on each lesion, 0 for a missed lesion. `false_positives` holds the
    confidences of detections outside all lesions. Hits on isolated tumour cells count as neither.
    """

    lesions: tuple[float, ...]
    false_positives: tuple[float, ...]


def match_detections(detections: Sequence[Detection], lesions: Lesions, mask_px: float) -> SlideHits:
    """Match detections with lesions; a pixel of the label image is `mask_px` level-0 pixels wide."""
    best = dict.fromkeys(lesions.counted, 0.0)
    false_positives = []
    height, width = lesions.labels.shape
    for d in detections:
        row, column = int(d.y / mask_px), int(d.x / mask_px)
        inside = 0 <= row < height and 0 <= column < width
        label = int(lesions.labels[row, column]) if inside else NO_LESION
        if label == NO_LESION:
            false_positives.append(d.confidence)
        elif label in best:
            best[label] = max(best[label], d.confidence)
    return SlideHits(tuple(best.values()), tuple(false_positives))


@dataclass(frozen=True, slots=True)
class Froc:
    """FROC curve by ascending threshold, ending at no detections, and sensitivity at `FALSE_POSITIVES_PER_SLIDE`.

    `step_sensitivity` is the highest sensitivity at or below each number of false positives per slide (step rule),
    `interpolated_sensitivity` the linear interpolation between the points.
    """

    threshold: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    step_sensitivity: tuple[float, ...]
    interpolated_sensitivity: tuple[float, ...]

    @property
    def step_score(self) -> float:
        return float(np.mean(self.step_sensitivity))

    @property
    def interpolated_score(self) -> float:
        return float(np.mean(self.interpolated_sensitivity))


class PooledHits:
    """The hits of many slides, sorted once for all resamples."""

    def __init__(self, slides: Sequence[SlideHits]) -> None:
        confidences = list[float]()
        is_hit = list[bool]()
        slide = list[int]()
        for number, hits in enumerate(slides):
            count = len(hits.lesions) + len(hits.false_positives)
            confidences += (*hits.lesions, *hits.false_positives)
            is_hit += [True] * len(hits.lesions) + [False] * len(hits.false_positives)
            slide += [number] * count
        order = np.argsort(confidences, kind="stable")
        ascending = np.array(confidences, np.float64)[order]
        self._starts = np.flatnonzero(np.diff(ascending, prepend=-np.inf))
        self._values = ascending[self._starts]
        self._is_hit = np.array(is_hit, bool)[order]
        self._slide = np.array(slide, np.int64)[order]
        self._slides = len(slides)

    def __len__(self) -> int:
        return self._slides

    def froc(self, weights: Weights | None = None) -> Froc | None:
        """FROC with each slide counted `weights` (slides,) times, once where None; None without lesions."""
        counted: Weights = np.ones(self._slides, np.int64) if weights is None else weights
        draws = counted[self._slide]
        lesions = int(draws[self._is_hit].sum())
        if not lesions:
            return None
        hits = np.add.reduceat(np.where(self._is_hit, draws, 0), self._starts)
        misses = np.add.reduceat(np.where(self._is_hit, 0, draws), self._starts)
        # Drop the lowest confidence, as the official script does; a missed lesion has confidence 0.
        used = np.flatnonzero(hits + misses)[1:]
        per_slide = np.cumsum(misses[::-1])[::-1][used] / counted.sum()
        sensitivity = np.cumsum(hits[::-1])[::-1][used] / lesions
        per_slide = np.append(per_slide, 0.0)
        sensitivity = np.append(sensitivity, 0.0)
        limits = np.array(FALSE_POSITIVES_PER_SLIDE)
        reached = tuple(float(sensitivity[per_slide <= limit].max()) for limit in limits)
        interpolated = tuple(np.interp(limits, per_slide[::-1], sensitivity[::-1]).tolist())
        return Froc(np.append(self._values[used], np.inf), per_slide, sensitivity, reached, interpolated)

    def resampled(self, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """FROC score, interpolated and by the step rule, of each resample: 2 x (resamples,); NaN without lesions."""
        drawn = [self.froc(row) for row in weights]
        scores = [(np.nan, np.nan) if f is None else (f.interpolated_score, f.step_score) for f in drawn]
        interpolated, step = np.array(scores, np.float64).reshape(-1, 2).T
        return interpolated, step


def froc(slides: Sequence[SlideHits]) -> Froc | None:
    """FROC over slides; None without lesions."""
    return PooledHits(slides).froc()
