"""The patches of many slides as one indexed collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.levels import OPEN_SHARDS, Cache
from wsi_pipeline.patch_store import PatchStore
from wsi_pipeline.seeds import generator
from wsi_pipeline.shards import Shard

GIB = 1 << 30


class PatchBank:
    """Patches of several slides; index `i` is the same patch in `labels[i]`, `slides[i]` and `read([i])`.

    They are kept in memory where they fit in `memory_gib`, else read from the stores as needed.
    """

    def __init__(self, stores: Sequence[Path], indices: Sequence[Path], *, memory_gib: float = 4.0) -> None:
        files: Cache[Shard] = Cache(OPEN_SHARDS)
        self._stores = [PatchStore(path, files) for path in stores]
        labels = [pq.read_table(path, columns=["label"])["label"].to_numpy() for path in indices]
        for store, own, path in zip(self._stores, labels, stores, strict=True):
            if len(store) != len(own):
                raise StoreError(
                    f"{path}: {len(store)} patches, but its index has {len(own)}",
                    remedy="Run the stage patches of this slide again",
                )
        self.labels: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64)
        counts = [len(own) for own in labels]
        self.slides: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)
        self._starts = np.cumsum([0, *counts])
        first = self._stores[0] if self._stores else None
        self.border_px = first.border_px if first else 0
        self._edge = first.edge if first else 0
        self._cache: NDArray[np.uint8] | None = None
        if sum(store.nbytes for store in self._stores) <= memory_gib * GIB:
            self._cache = np.concatenate(
                [np.zeros((0, self._edge, self._edge, 3), np.uint8), *(store.read_all() for store in self._stores)]
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels of the patches `index` with their borders, (n, P, P, 3) uint8."""
        if self._cache is not None:
            return self._cache[index]
        out = np.empty((len(index), self._edge, self._edge, 3), np.uint8)
        for k, patch in enumerate(index):
            slide = self.slides[patch]
            out[k] = self._stores[slide].read(int(patch - self._starts[slide]))
        return out

    def batches(self, indices: Iterator[NDArray[np.int64]], ahead: int) -> Iterator[tuple[Any, NDArray[np.uint8]]]:
        """Each batch of indices with its pixels, read up to `ahead` batches in advance."""
        with ThreadPoolExecutor(max(1, ahead)) as pool:
            pending = []
            for index in indices:
                pending.append((index, pool.submit(self.read, index)))
                if len(pending) > ahead:
                    first, future = pending.pop(0)
                    yield first, future.result()
            for index, future in pending:
                yield index, future.result()


class BalancedSampler:
    """Draws class, then slide, then patch, each uniformly (Liu et al., arXiv:1703.02442).

    The draw of a step is a function of (seed, step) alone.
    """

    def __init__(self, bank: PatchBank, seed: int, classes: int) -> None:
        self._seed = seed
        self._groups: list[list[NDArray[np.int64]]] = []
        for label in range(classes):
            of_class = np.flatnonzero(bank.labels == label)
            slides = bank.slides[of_class]
            self._groups.append([of_class[slides == slide] for slide in np.unique(slides)])

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """Indices of the patches of one step."""
        rng = generator(self._seed, "batch", step)
        draws = rng.random((size, 3))
        picked = np.empty(size, np.int64)
        for k, (u, v, w) in enumerate(draws):
            slides = self._groups[int(u * len(self._groups))]
            patches = slides[int(v * len(slides))]
            picked[k] = patches[int(w * len(patches))]
        return picked
