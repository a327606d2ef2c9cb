"""Lesions, detections and FROC after the Camelyon16 protocol.

Source: the challenge's evaluation rules (Ehteshami Bejnordi et al., JAMA 318, 2017, supplement) and
its public evaluation script, as restated in `docs/metrics.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.metrics.intervals import Weights
from wsi_pipeline.morphology import Index, Mask, Rows, Runs, bands, within

FALSE_POSITIVES_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# The challenge measures all slides at this scale of level 0, um per pixel, in masks of this level.
CAMELYON16_MPP = 0.243
CAMELYON16_LEVEL = 5
NO_LESION = 0
_IGNORED = -1


@dataclass(frozen=True, slots=True)
class Lesions:
    """The lesions of a slide, labelled from 1 on, as runs of pixels with the label of each, (n,).

    `ignored_runs` is where detections are ignored. `counted` has the labels of the lesions that are hit or missed,
    `isolated` those of isolated tumour cells, and `ignored` the centroids (x, y), in pixels of the mask, of lesions
    that are mostly ignored.
    """

    runs: Runs
    labels: Index
    ignored_runs: Runs
    counted: tuple[int, ...] = ()
    isolated: tuple[int, ...] = ()
    ignored: tuple[tuple[float, float], ...] = ()

    def labels_at(self, rows: Index, columns: Index) -> Index:
        """The label at each pixel (k,): 0 outside lesions and the mask, -1 where detections are ignored."""
        labels = np.append(self.labels, NO_LESION)[self.runs.index_at(rows, columns)]
        return np.where(self.ignored_runs.index_at(rows, columns) >= 0, _IGNORED, labels)


_NO_RUNS = Runs.of_bands((0, 0), ())
NO_LESIONS = Lesions(_NO_RUNS, np.zeros(0, np.int64), _NO_RUNS)


def find_lesions(tumor: Rows, mpp: float, *, merge_um: float, itc_um: float, ignored: Rows | None = None) -> Lesions:
    """Lesions of a tumour mask (h, w): foci closer than `merge_um` are merged, and holes are filled.

    A lesion with a major axis shorter than `itc_um` is isolated tumour cells. `ignored` (h, w) is where detections are
    ignored; tumour there belongs to its lesion, and a lesion with more than half of its tumour there is ignored.
    The masks are read in bands, and lesions are labelled as runs of pixels.
    """
    reach, height = merge_um / (2 * mpp), tumor.shape[0]
    halo = math.ceil(reach)

    def near(band: slice) -> Mask:
        first = max(0, band.start - halo)
        part: Mask = tumor[first : band.stop + halo]
        return (within(part, reach) | part)[band.start - first :][: band.stop - band.start]

    runs = Runs.of_bands(tumor.shape, map(near, bands(height))).filled()
    labels = runs.components() + 1
    axes, centroids = axes_and_centroids(runs, labels)
    isolated = axes < itc_um / mpp
    hidden, ignored_runs = np.zeros(len(axes), bool), _NO_RUNS
    if ignored is not None:
        ignored_runs = Runs.of(ignored)
        both = Runs.of_bands(tumor.shape, (tumor[band] & ignored[band] for band in bands(height)))
        # Each run of tumour lies in one of a lesion.
        pixels, of_ignored = (
            np.bincount(labels[runs.index_at(part.rows, part.starts)] - 1, part.lengths, len(axes))
            for part in (Runs.of(tumor), both)
        )
        hidden = 2 * of_ignored > pixels
    return Lesions(
        runs,
        labels,
        ignored_runs,
        counted=tuple((np.flatnonzero(~isolated & ~hidden) + 1).tolist()),
        isolated=tuple((np.flatnonzero(isolated) + 1).tolist()),
        ignored=tuple((x, y) for x, y in centroids[~isolated & hidden].tolist()),
    )


def axes_and_centroids(runs: Runs, labels: Index) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the pixels of each label, from 1 on: the major axis (k,) of the ellipse with their second moments, in pixels,
    as `skimage.measure.regionprops` defines it, and the centroid (x, y), (k, 2).
    """
    y, n = runs.rows, runs.lengths
    x = n * (runs.starts + runs.stops - 1) // 2
    # Of squares: n (n + 1) (2 n + 1) / 6 up to n.
    xx = np.subtract(*((end - 1) * end * (2 * end - 1) // 6 for end in (runs.stops, runs.starts)))
    sums = np.zeros((int(labels.max(initial=0)), 6), np.int64)
    np.add.at(sums, labels - 1, np.stack((n, x, n * y, xx, x * y, n * y * y), axis=1))
    # Exact: products of the sums exceed 64 bits.
    area, x, y, xx, xy, yy = sums.T.astype(object)
    across, both, down = (
        ((area * product - one * other) / (area * area)).astype(np.float64)
        for product, one, other in ((xx, x, x), (xy, x, y), (yy, y, y))
    )
    longest = (across + down) / 2 + np.hypot((across - down) / 2, both)
    return 4 * np.sqrt(longest), np.stack((x / area, y / area), axis=1).astype(np.float64)


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
    remaining = np.where(np.isnan(heat), -np.inf, heat.astype(np.float64))
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
        window[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = -np.inf
    return found


def component_maxima(heat: NDArray[np.float32], min_score: float) -> list[tuple[float, int, int]]:
    """The maximum of each 8-connected component at or above `min_score`: (score, column, row), highest first.

    Ties, within a component and between components, go to the first in reading order.
    """
    known = np.where(np.isnan(heat), -np.inf, heat.astype(np.float64))
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

    `lesions` holds the highest confidence on each lesion, None for a missed lesion. `false_positives` holds the
    confidences of detections outside all lesions. Confidences are any real numbers. Hits on isolated tumour cells, of
    which `isolated` is the number, count as neither.
    """

    lesions: tuple[float | None, ...]
    false_positives: tuple[float, ...]
    isolated: int = 0

    @property
    def hits(self) -> list[float]:
        """The confidences of the lesions that are hit."""
        return [confidence for confidence in self.lesions if confidence is not None]


def match_detections(detections: Sequence[Detection], lesions: Lesions, mask_px: float) -> SlideHits:
    """Match detections with lesions; a pixel of the label image is `mask_px` level-0 pixels wide."""
    best: dict[int, float | None] = dict.fromkeys(lesions.counted)
    false_positives = []
    # Towards 0.
    rows, columns = (np.array([getattr(d, axis) for d in detections], np.float64) / mask_px for axis in "yx")
    labels = lesions.labels_at(rows.astype(np.int64), columns.astype(np.int64))
    for d, label in zip(detections, labels.tolist(), strict=True):
        if label == NO_LESION:
            false_positives.append(d.confidence)
        elif label in best:
            known = best[label]
            best[label] = d.confidence if known is None else max(known, d.confidence)
    return SlideHits(tuple(best.values()), tuple(false_positives), len(lesions.isolated))


@dataclass(frozen=True, slots=True)
class Froc:
    """FROC curve by ascending threshold, ending at no detections."""

    threshold: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]

    @property
    def step_sensitivity(self) -> NDArray[np.float64]:
        """The highest sensitivity at or below each of `FALSE_POSITIVES_PER_SLIDE` (step rule)."""
        within = np.searchsorted(self.false_positives[::-1], FALSE_POSITIVES_PER_SLIDE, side="right")
        return self.sensitivity[len(self.sensitivity) - within]

    @property
    def interpolated_sensitivity(self) -> NDArray[np.float64]:
        """Sensitivity at each of `FALSE_POSITIVES_PER_SLIDE`, interpolated linearly between the points."""
        found: NDArray[np.float64] = np.interp(
            FALSE_POSITIVES_PER_SLIDE, self.false_positives[::-1], self.sensitivity[::-1]
        )
        return found

    @property
    def step_score(self) -> float:
        return float(self.step_sensitivity.mean())

    @property
    def interpolated_score(self) -> float:
        return float(self.interpolated_sensitivity.mean())


class FrocCurves(NamedTuple):
    """The FROC curve over all thresholds, and its part by the rule of Camelyon16."""

    all_thresholds: Froc
    camelyon16: Froc


class PooledHits:
    """The hits of many slides, sorted once for all weights.

    `missed` is the confidence that Camelyon16's script lists for a missed lesion and for a label of isolated tumour
    cells: 0 where confidences are probabilities. None may be lower.
    """

    def __init__(self, slides: Sequence[SlideHits], missed: float = -math.inf) -> None:
        hits = [(c, number) for number, one in enumerate(slides) for c in one.hits]
        false = [(c, number) for number, one in enumerate(slides) for c in one.false_positives]
        confidences, slide = np.array([*hits, *false], np.float64).reshape(-1, 2).T
        self._values, rank = np.unique(confidences, return_inverse=True)
        of_hits = np.arange(len(rank)) < len(hits)
        self._ranks = rank[of_hits], rank[~of_hits]
        self._slide = slide[of_hits].astype(np.int64), slide[~of_hits].astype(np.int64)
        self._lesions = np.array([len(one.lesions) for one in slides], np.int64)
        # Labels without a detection.
        self._unhit = np.array([one.lesions.count(None) + one.isolated for one in slides], np.int64)
        self._missed = missed

    def __len__(self) -> int:
        return len(self._lesions)

    def froc(self, weights: Weights | None = None) -> FrocCurves | None:
        """FROC with each slide counted `weights` (slides,) times, once where None; None without lesions."""
        counted: Weights = np.ones(len(self), np.int64) if weights is None else weights
        lesions = int(counted @ self._lesions)
        if not lesions:
            return None
        hits, false = (
            np.bincount(rank, counted[slide], len(self._values))
            for rank, slide in zip(self._ranks, self._slide, strict=True)
        )
        used = np.flatnonzero(hits + false)
        curve = (
            np.append(self._values[used], np.inf),
            np.append(np.cumsum(false[used][::-1])[::-1], 0) / counted.sum(),
            np.append(np.cumsum(hits[used][::-1])[::-1], 0) / lesions,
        )
        # The script drops the lowest of its list of confidences.
        lowest = self._missed if counted @ self._unhit else curve[0][0]
        kept = slice(int(np.searchsorted(curve[0], lowest, side="right")), None)
        return FrocCurves(Froc(*curve), Froc(*(values[kept] for values in curve)))

    def weighted(self, weights: Weights) -> NDArray[np.float64]:
        """FROC scores for each row of weights, (curves, rules, rows); NaN without lesions.

        Curves in the order of `FrocCurves`; the rules are interpolation and the step rule.
        """
        scores = np.full((len(weights), 2, 2), np.nan)
        for row, found in zip(scores, map(self.froc, weights), strict=True):
            if found is not None:
                row[:] = [(curve.interpolated_score, curve.step_score) for curve in found]
        return scores.transpose(1, 2, 0)
