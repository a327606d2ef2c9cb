"""Binary images of whole slides, in memory that follows their bands of rows and runs of pixels, not their size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Height of the bands, and edge of the blocks of distance transforms: the edge of a chunk of a stored label image.
BAND_PX = 512

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]


class Rows(Protocol):
    """An image (h, w) of which bands of rows are taken: an array, or one in a store."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class MappedRows:
    """`values` of each band of an image, such as where it has a label."""

    image: Rows
    values: Callable[[NDArray[Any]], NDArray[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        return self.values(self.image[rows])


class PackedMask:
    """A mask of `shape` (h, w) with eight pixels a byte, from its bands in order."""

    def __init__(self, shape: tuple[int, ...], parts: Iterable[Mask]) -> None:
        self.shape = shape
        self._bits = np.zeros((shape[0], -(-shape[1] // 8)), np.uint8)
        top = 0
        for part in parts:
            self._bits[top : top + len(part)] = np.packbits(part, axis=1)
            top += len(part)

    def __getitem__(self, rows: slice, /) -> Mask:
        return np.unpackbits(self._bits[rows], axis=1, count=self.shape[1]).view(np.bool_)


def bands(height: int) -> Iterator[slice]:
    """The rows of an image, `BAND_PX` at a time."""
    return (slice(top, min(top + BAND_PX, height)) for top in range(0, height, BAND_PX))


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of set pixels of a mask of `shape` (h, w), in reading order.

    Row, first column and the column after the last of each, (n,) int64. No two runs of a row touch.
    """

    shape: tuple[int, ...]
    rows: Index
    starts: Index
    stops: Index

    @classmethod
    def of(cls, mask: Rows) -> Self:
        """The runs of a mask, read in bands."""
        height, width = mask.shape
        return cls.of_bands((height, width), (mask[band] for band in bands(height)))

    @classmethod
    def of_bands(cls, shape: tuple[int, ...], parts: Iterable[Mask]) -> Self:
        """The runs of a mask of `shape` from its bands, in order."""
        stride, top, found = shape[1] + 2, 0, [np.zeros((3, 0), np.int64)]
        for part in parts:
            # Start and end of each run, as positions in the flattened, padded rows.
            changes = np.flatnonzero(np.diff(np.pad(part, ((0, 0), (1, 1))).ravel()))
            rows, starts = np.divmod(changes[::2], stride)
            found.append(np.stack((rows + top, starts, changes[1::2] % stride)))
            top += len(part)
        return cls(shape, *np.concatenate(found, axis=1))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Index:
        """Pixels of each run, (n,)."""
        return self.stops - self.starts

    def where(self, chosen: Mask) -> Self:
        """The runs of `chosen` (n,)."""
        return type(self)(self.shape, self.rows[chosen], self.starts[chosen], self.stops[chosen])

    def components(self, *, diagonal: bool = True) -> Index:
        """The component of each run, (n,), numbered by their first runs; 8-connected, or 4-connected."""
        stride = self.shape[1] + 2
        starts, stops = self.rows * stride + self.starts, self.rows * stride + self.stops
        # Runs of adjacent rows are 8-connected where neither ends before the other starts.
        first = np.searchsorted(stops, starts - stride, "left" if diagonal else "right")
        last = np.searchsorted(starts, stops - stride, "right" if diagonal else "left")
        counts = np.maximum(last - first, 0)
        below = np.repeat(np.arange(len(self)), counts)
        above = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts - first, counts)
        touching = coo_array((np.ones(len(below), bool), (below, above)), shape=(len(self), len(self)))
        found: Index = connected_components(touching, directed=False)[1].astype(np.int64)
        return found

    def filled(self) -> Self:
        """With the holes of the mask: 4-connected parts of the background that touch no border."""
        background = self._inverted()
        height, width = self.shape
        at_border = (background.rows == 0) | (background.rows == height - 1)
        at_border |= (background.starts == 0) | (background.stops == width)
        component = background.components(diagonal=False)
        is_outside = np.zeros(len(background) + 1, bool)
        is_outside[component[at_border]] = True
        return self._joined(background.where(~is_outside[component]))

    def _inverted(self) -> Self:
        height, width = self.shape
        # The border of each row is the end of a run before it, and the start of one after it.
        every = np.arange(height)
        rows = np.concatenate((every, self.rows))
        order = np.argsort(rows, kind="stable")
        starts = np.concatenate((np.zeros(height, np.int64), self.stops))[order]
        rows_after = np.concatenate((self.rows, every))
        stops = np.concatenate((self.starts, np.full(height, width)))[np.argsort(rows_after, kind="stable")]
        return type(self)(self.shape, rows[order], starts, stops).where(starts < stops)

    def _joined(self, other: Self) -> Self:
        """The union with runs that overlap none of these."""
        rows, starts, stops = (
            np.concatenate(pair)
            for pair in ((self.rows, other.rows), (self.starts, other.starts), (self.stops, other.stops))
        )
        order = np.lexsort((starts, rows))
        rows, starts, stops = rows[order], starts[order], stops[order]
        begins, ends = np.ones(len(rows), bool), np.ones(len(rows), bool)
        begins[1:] = ends[:-1] = (rows[1:] != rows[:-1]) | (starts[1:] != stops[:-1])
        return type(self)(self.shape, rows[begins], starts[begins], stops[ends])

    def index_at(self, rows: Index, columns: Index) -> Index:
        """The run at each pixel (k,), -1 outside all; pixels may lie off the image."""
        stride = self.shape[1] + 2
        found = np.searchsorted(self.rows * stride + self.starts, rows * stride + columns, "right") - 1
        inside = (found >= 0) & (columns >= 0) & (columns < self.shape[1])
        inside[inside] = (self.rows[found[inside]] == rows[inside]) & (columns[inside] < self.stops[found[inside]])
        return np.where(inside, found, -1)

    def paint(self, part: NDArray[Any], top: int, value: Any) -> None:
        """Set the pixels of the runs in `part`, the rows of an image from `top` on, in place."""
        first, last = np.searchsorted(self.rows, (top, top + len(part)))
        spans = (self.rows[first:last] - top, self.starts[first:last], self.stops[first:last])
        for row, start, stop in zip(*(span.tolist() for span in spans), strict=True):
            part[row, start:stop] = value


def closed(mask: Rows, radius: int) -> Iterator[Mask]:
    """Bands of a mask (h, w), closed by a disk of `radius` pixels. Outside the image nothing is set."""
    height, halo = mask.shape[0], 2 * radius
    for band in bands(height):
        first, last = max(0, band.start - halo), min(height, band.stop + halo)
        part = mask[first:last]
        above, below = halo - (band.start - first), halo - (last - band.stop)
        padded = np.pad(part, ((above, below), (halo, halo)))
        filled = ~_dilate(~_dilate(padded, radius), radius)
        inside = slice(halo, halo + band.stop - band.start)
        yield filled[inside, halo : halo + mask.shape[1]] | padded[inside, halo : halo + mask.shape[1]]


def _dilate(mask: Mask, radius: int) -> Mask:
    """Dilate by a disk: a union of shifted horizontal dilations, each widened from the last. The outside is False."""
    out = np.zeros_like(mask)
    # `widened` is the mask dilated by `half_width` along its rows.
    widened = mask.copy()
    half_width = 0
    for dy in range(radius, -1, -1):
        target = math.isqrt(radius**2 - dy**2)
        while half_width < target:
            step = min(target - half_width, 2 * half_width + 1)
            wider = widened.copy()
            wider[:, step:] |= widened[:, :-step]
            wider[:, :-step] |= widened[:, step:]
            widened = wider
            half_width += step
        out[dy:] |= widened[: len(widened) - dy]
        out[: len(widened) - dy] |= widened[dy:]
    return out


def without_small(mask: Rows, min_pixels: float) -> Iterator[Mask]:
    """Bands of a mask (h, w) without its 8-connected components of fewer than `min_pixels`; reads the mask twice."""
    for band, (touching, totals) in zip(bands(mask.shape[0]), _sizes_across_bands(mask), strict=True):
        part = mask[band].copy()
        runs, component, sizes = _labelled(part)
        sizes[touching] = totals
        runs.where(sizes[component] < min_pixels).paint(part, 0, False)
        yield part


def _labelled(part: Mask) -> tuple[Runs, Index, Index]:
    """The runs of a band, the component of each within the band, and the pixels of each component."""
    runs = Runs.of_bands(part.shape, [part])
    component = runs.components()
    return runs, component, _sums(component, runs.lengths)


def _sums(group: Index, values: Index) -> Index:
    """Sum of the values of each group."""
    return np.bincount(group, weights=values).astype(np.int64)


def _sizes_across_bands(mask: Rows) -> list[tuple[Index, Index]]:
    """Of each band, the components of `_labelled` that touch its first or last row, and their pixels in the image."""
    borders, nodes, touching, sizes = [], [], [], []
    first_node = 0
    for band in bands(mask.shape[0]):
        runs, component, pixels = _labelled(mask[band])
        at_border = (runs.rows == 0) | (runs.rows == band.stop - band.start - 1)
        border = runs.where(at_border)
        found, node = np.unique(component[at_border], return_inverse=True)
        borders.append(np.stack((border.rows + band.start, border.starts, border.stops)))
        nodes.append(node + first_node)
        touching.append(found)
        sizes.append(pixels[found])
        first_node += len(found)
    # Nodes are joined where their runs at the border of two bands touch.
    joined = Runs(mask.shape, *np.concatenate(borders, axis=1)).components()
    count = first_node + (int(joined.max()) + 1 if len(joined) else 0)
    node = np.concatenate(nodes)
    graph = coo_array((np.ones(len(node), bool), (node, joined + first_node)), shape=(count, count))
    label = connected_components(graph, directed=False)[1][:first_node]
    totals = _sums(label, np.concatenate(sizes))[label]
    return list(zip(touching, np.split(totals, np.cumsum([len(found) for found in touching])[:-1]), strict=True))


def within(mask: Mask, reach: float) -> Mask:
    """Pixels (h, w) whose centre is less than `reach` pixels from that of a set pixel."""
    near, halo = np.zeros_like(mask), math.ceil(reach)
    # Block by block: a distance transform takes some 50 bytes a pixel, and most blocks need none.
    for top in range(0, mask.shape[0], BAND_PX):
        for left in range(0, mask.shape[1], BAND_PX):
            first, start = max(0, top - halo), max(0, left - halo)
            part = mask[first : top + BAND_PX + halo, start : left + BAND_PX + halo]
            if part.any():
                found = part if part.all() and reach > 0 else ndimage.distance_transform_edt(~part) < reach
                block = near[top : top + BAND_PX, left : left + BAND_PX]
                block[...] = found[top - first :, left - start :][: block.shape[0], : block.shape[1]]
    return near
