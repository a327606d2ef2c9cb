"""The histogram of a heatmap's scores by truth, in steps of log odds; additive over slides.

Parquet columns: `score` (a step, see `metrics.steps`, ascending), and the numbers of `normal`, `tumor` and `ignored`
positions with that score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import digest_bytes
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.metrics.curves import Histogram
from wsi_pipeline.metrics.exact import share_of
from wsi_pipeline.metrics.steps import STEPS, centres, dequantize, log_odds_of_mean, quantize
from wsi_pipeline.receipts.evaluation import ScoresReceipt

_COLUMNS = ("score", "normal", "tumor", "ignored")


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """Distinct scores in steps, ascending, and the number of positions with each, all (scores,) int64."""

    steps: NDArray[np.int64]
    normal: NDArray[np.int64]
    tumor: NDArray[np.int64]
    ignored: NDArray[np.int64]

    @classmethod
    def of(cls, heat: NDArray[np.float32], labels: NDArray[np.uint8]) -> Self:
        """Count the predicted positions of a heatmap of log odds by their truth, both (rows, columns)."""
        known = np.isfinite(heat)
        steps, index = np.unique(quantize(heat[known]), return_inverse=True)
        truth = labels[known]
        counts = [np.bincount(index[truth == value], minlength=len(steps)) for value in (NORMAL, TUMOR, IGNORE)]
        return cls(steps, *counts)

    @classmethod
    def sum_of(cls, histograms: Iterable[Self]) -> Self:
        """The histogram of the positions of all `histograms`."""
        sums = np.zeros((3, STEPS + 1), np.int64)
        for one in histograms:
            sums[:, one.steps] += one.normal, one.tumor, one.ignored
        steps = np.flatnonzero(sums.any(axis=0))
        return cls(steps, *sums[:, steps])

    @property
    def histogram(self) -> Histogram:
        """The histogram of the normal and tumour positions."""
        scored = np.flatnonzero(self.normal + self.tumor)
        return Histogram(dequantize(self.steps[scored]), self.normal[scored], self.tumor[scored])

    def top_mean(self, share: float) -> float | None:
        """Log odds of the mean probability of the highest `share` of all predicted positions, at least one.

        None without predicted positions.
        """
        counts = (self.normal + self.tumor + self.ignored)[::-1]
        wanted = math.ceil(share_of(share, int(counts.sum())))
        if not wanted:
            return None
        before = np.cumsum(counts) - counts
        return log_odds_of_mean(centres(self.steps[::-1]), np.clip(wanted - before, 0, counts))

    @property
    def digest(self) -> str:
        """SHA-256 of the content, which does not depend on the Parquet version."""
        counts = np.stack((self.normal, self.tumor, self.ignored)).astype("<i8")
        return digest_bytes(self.steps.astype("<u2").tobytes() + counts.tobytes())

    def write(self, path: Path) -> None:
        """Write the histogram as Parquet."""
        values = (self.steps.astype(np.uint16), self.normal, self.tumor, self.ignored)
        with atomic_output(path) as partial:
            pq.write_table(pa.table(dict(zip(_COLUMNS, values, strict=True))), partial)

    @classmethod
    def read(cls, path: Path, receipt: ScoresReceipt) -> Self:
        """The inverse of `write`. Raises `StoreError` for a damaged file, and for one with another receipt."""
        try:
            table = pq.ParquetFile(path).read(use_threads=False)
            found = cls(*(table[name].to_numpy().astype(np.int64) for name in _COLUMNS))
            if found.digest != receipt.counts_sha256:
                raise ValueError("its receipt is of another one")
        except (OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{path}: not a table of scores ({error})",
                remedy="Run the stage scores again; for that, delete its receipt and run Snakemake",
            ) from error
        return found
