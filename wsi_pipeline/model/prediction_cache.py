"""Cache of a slide's predictions, beside its heatmap.

A killed job resumes from it, and a change of averaging or smoothing needs no inference. Log odds are stored in the
order in which the patches are read (`PatchReader.order`).
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.receipts.models import PrecisionFacts

log = logging.getLogger(__name__)

# Exceptions of zipfile and NumPy on corrupt files.
_DAMAGES = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class PredictionCache:
    """Predictions of `count` patches: `log_odds` (count,) float32 are known before index `done`.

    `whole` (count,) bool is False for patches on damaged chunks, whose log odds are NaN.
    `precision` is None for an empty cache.
    """

    def __init__(self, path: Path, inputs: str, count: int) -> None:
        self._path, self._inputs = path, inputs
        self.log_odds = np.full(count, np.nan, np.float32)
        self.whole = np.ones(count, np.bool_)
        self.done = 0
        self.precision: PrecisionFacts | None = None

    @classmethod
    def open(cls, path: Path, inputs: str, count: int, *, retry: bool = True) -> Self:
        """Read the cache at `path`; empty where it is absent, damaged, or of another digest of `inputs`.

        With `retry` it ends before the first patch on a damaged chunk: the pyramid may have been repaired.
        """
        scores = cls(path, inputs, count)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                if str(content["inputs"]) != inputs:
                    return scores
                log_odds, whole = content["log_odds"], content["whole"]
                precision = PrecisionFacts.model_validate_json(str(content["facts"]))
        except FileNotFoundError:
            return scores
        except _DAMAGES as error:
            log.warning("%s: ignored, it is damaged (%s)", path, error)
            return scores
        scores.done = int(np.argmin(whole)) if retry and not whole.all() else len(whole)
        scores.log_odds[: scores.done] = log_odds[: scores.done]
        scores.whole[: scores.done] = whole[: scores.done]
        scores.precision = precision
        return scores

    def add(self, first: int, log_odds: NDArray[np.float32], whole: NDArray[np.bool_]) -> None:
        """Add log odds (n,) of the patches from index `first` on, which must equal `done`."""
        part = slice(first, first + len(whole))
        self.log_odds[part][whole] = log_odds[whole]
        self.whole[part] = whole
        self.done = part.stop

    @property
    def unread(self) -> int:
        """Number of patches on damaged chunks."""
        return int((~self.whole).sum())

    def save(self, path: Path | None = None) -> None:
        """Write the known predictions atomically, to `path` or to the file that was opened."""
        known = slice(0, self.done)
        with atomic_output(path or self._path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                inputs=np.array(self._inputs),
                log_odds=self.log_odds[known],
                whole=self.whole[known],
                facts=np.array(json.dumps(self.precision and self.precision.as_json())),
            )
