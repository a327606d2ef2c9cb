"""Patches of several slides as one indexed dataset, a prefetcher of batches, and a balanced sampler."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.errors import StoreError
from wsi_pipeline.pyramid.level import MAX_OPEN_SHARDS, LruCache
from wsi_pipeline.pyramid.patch_store import PatchStore
from wsi_pipeline.pyramid.shards import Shard
from wsi_pipeline.seeds import generator

GIB = 1 << 30
# Patches read by one task of a thread.
_READ_TOGETHER = 16

Index = NDArray[np.int64]


class PatchDataset:
    """Patches of several slides, indexed from 0.

    `labels` (n,) int64 holds the class of each patch, `slides` (n,) int64 the position of its slide in `stores`.
    Stored patches measure `edge_px` on a side, `border_px` of them on each side being border.

    If the decoded pixels fit `memory_gib`, they are kept in memory; otherwise the encoded streams, if those fit;
    otherwise each patch is read from its store on access.
    """

    def __init__(
        self, stores: Sequence[Path], indices: Sequence[Path], *, memory_gib: float = 4.0, workers: int = 1
    ) -> None:
        """Raises `StoreError` where a store and its index (Parquet) differ in the number of patches."""
        files: LruCache[Shard] = LruCache(MAX_OPEN_SHARDS)
        self._stores = [PatchStore(path, files) for path in stores]
        self._indices = indices
        labels = [_labels(path) for path in indices]
        for store, own, path in zip(self._stores, labels, stores, strict=True):
            if len(store) != len(own):
                raise StoreError(
                    f"{path}: {len(store)} patches, but its index has {len(own)}",
                    remedy="Run the stage patches of this slide again",
                )
        self.labels: Index = np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64)
        counts = [len(own) for own in labels]
        self.slides: Index = np.repeat(np.arange(len(counts)), counts)
        self._starts = np.cumsum([0, *counts])
        # The stores of slides without patches have no patch size.
        first = next((store for store in self._stores if len(store)), None)
        self.border_px = first.border_px if first else 0
        self.edge_px = first.edge if first else 0
        self._pixels: NDArray[np.uint8] | None = None
        self._streams: list[bytes] | None = None
        room = memory_gib * GIB
        if sum(store.nbytes for store in self._stores) <= room:
            pixels = np.empty((len(self), self.edge_px, self.edge_px, 3), np.uint8)
            self._fill(pixels, workers)
            self._pixels = pixels
        elif sum(store.stored_bytes for store in self._stores) <= room:
            with ThreadPoolExecutor(workers) as pool:
                self._streams = list(pool.map(self._stream, range(len(self))))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, patch: int) -> NDArray[np.uint8]:
        """Pixels of a patch with its border, (edge_px, edge_px, 3) uint8. Raises `StoreError` where it is damaged."""
        if self._pixels is not None:
            pixels: NDArray[np.uint8] = self._pixels[patch]
            return pixels
        store, number = self._locate(patch)
        return store.decode(number, self._streams[patch] if self._streams is not None else store.stream(number))

    def describe(self, patch: int) -> dict[str, object]:
        """Columns slide, x, y (level-0 pixels) and label of a patch, as far as its index has them."""
        slide = int(self.slides[patch])
        row = pq.read_table(self._indices[slide]).slice(int(patch - self._starts[slide]), 1).to_pylist()[0]
        return {name: row[name] for name in ("slide", "x", "y", "label") if name in row}

    def _locate(self, patch: int) -> tuple[PatchStore, int]:
        slide = int(self.slides[patch])
        return self._stores[slide], int(patch - self._starts[slide])

    def _stream(self, patch: int) -> bytes:
        store, number = self._locate(patch)
        return store.stream(number)

    def _fill(self, out: NDArray[np.uint8], workers: int) -> None:
        def read(start: int) -> None:
            for patch in range(start, min(start + _READ_TOGETHER, len(out))):
                out[patch] = self.read(patch)

        with ThreadPoolExecutor(workers) as pool:
            deque(pool.map(read, range(0, len(out), _READ_TOGETHER)), maxlen=0)


class Prefetcher:
    """Iterates over batches of a dataset, which `workers` threads read up to `ahead` batches in advance.

    Yields (indices (n,), pixels (n, edge_px, edge_px, 3) uint8), in page-locked memory with `pin`. `wait_seconds` is
    the total time that the consumer has waited for pixels.
    """

    def __init__(
        self, dataset: PatchDataset, indices: Iterable[Index], *, workers: int, ahead: int = 3, pin: bool = False
    ) -> None:
        self._dataset, self._indices = dataset, indices
        self._workers, self._ahead = workers, ahead
        self._pin = pin
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Index, Tensor]]:
        indices = iter(self._indices)
        pool = ThreadPoolExecutor(self._workers)
        try:
            pending = deque(self._submit(pool, index) for index in islice(indices, self._ahead))
            while pending:
                index, pixels, parts = pending.popleft()
                started = time.perf_counter()
                for part in parts:
                    part.result()
                self.wait_seconds += time.perf_counter() - started
                pending.extend(self._submit(pool, following) for following in islice(indices, 1))
                yield index, pixels
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, index: Index) -> tuple[Index, Tensor, list[Future[None]]]:
        edge = self._dataset.edge_px
        pixels = torch.empty((len(index), edge, edge, 3), dtype=torch.uint8, pin_memory=self._pin)
        out = pixels.numpy()

        def read(start: int) -> None:
            for k in range(start, min(start + _READ_TOGETHER, len(index))):
                out[k] = self._dataset.read(int(index[k]))

        return index, pixels, [pool.submit(read, start) for start in range(0, len(index), _READ_TOGETHER)]


class BalancedSampler:
    """Draws a class, a slide of that class, and a patch of that slide, each uniformly (Liu et al., arXiv:1703.02442).

    A batch is a function of (seed, step) alone.
    """

    def __init__(self, dataset: PatchDataset, seed: int, classes: int) -> None:
        self._seed = seed
        self._groups: list[list[Index]] = []
        for label in range(classes):
            of_class = np.flatnonzero(dataset.labels == label)
            slides = dataset.slides[of_class]
            self._groups.append([of_class[slides == slide] for slide in np.unique(slides)])

    def batch(self, step: int, size: int) -> Index:
        """Indices (size,) int64 of the patches of a step, drawn with replacement."""
        rng = generator(self._seed, "batch", step)
        draws = rng.random((size, 3))
        picked = np.empty(size, np.int64)
        for k, (u, v, w) in enumerate(draws):
            slides = self._groups[int(u * len(self._groups))]
            patches = slides[int(v * len(slides))]
            picked[k] = patches[int(w * len(patches))]
        return picked


def _labels(index: Path) -> Index:
    try:
        return np.asarray(pq.read_table(index, columns=["label"])["label"], np.int64)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise StoreError(
            f"{index}: no table of patches ({error})", remedy="Run the stage patches of this slide again"
        ) from error
