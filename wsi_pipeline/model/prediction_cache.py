"""What the network said of the patches of a slide, kept beside the heatmap.

A job that was killed goes on from there; one that only averages or smooths in another way asks the network
nothing. Values are in steps of 1/65535 and in the order of the walk.
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.metrics.steps import dequantize, quantize

log = logging.getLogger(__name__)

# What zipfile and NumPy raise on wrong bytes.
_DAMAGES = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class PredictionCache:
    """Scores of `count` patches, of which those before `done` are known; `whole` says which could be read."""

    def __init__(self, path: Path, inputs: str, count: int) -> None:
        self._path, self._inputs = path, inputs
        self.steps = np.zeros(count, np.uint16)
        self.whole = np.ones(count, np.bool_)
        self.done = 0
        self.facts: dict[str, Any] = {}

    @classmethod
    def open(cls, path: Path, inputs: str, count: int) -> Self:
        """Those that `path` has of the same `inputs`, a digest; none where they are other ones, or it is damaged."""
        scores = cls(path, inputs, count)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                if str(content["inputs"]) != inputs:
                    return scores
                steps, whole = content["steps"], content["whole"]
                facts = json.loads(str(content["facts"]))
        except FileNotFoundError:
            return scores
        except _DAMAGES as error:
            log.warning("%s: not used, it is damaged (%s)", path, error)
            return scores
        # What could not be read may have been mended.
        scores.done = len(whole) if whole.all() else int(np.argmin(whole))
        scores.steps[: scores.done] = steps[: scores.done]
        scores.facts = facts
        return scores

    def add(self, first: int, probabilities: NDArray[np.float32], whole: NDArray[np.bool_]) -> None:
        """The scores from number `first` on, which is the first one not known."""
        part = slice(first, first + len(whole))
        self.steps[part][whole] = quantize(probabilities[whole])
        self.whole[part] = whole
        self.done = part.stop

    @property
    def unread(self) -> int:
        """How many patches could not be read."""
        return int((~self.whole).sum())

    def save(self) -> None:
        """Write what is known, atomically."""
        known = slice(0, self.done)
        with atomic_output(self._path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                inputs=np.array(self._inputs),
                steps=self.steps[known],
                whole=self.whole[known],
                facts=np.array(json.dumps(self.facts)),
            )

    def probabilities(self) -> NDArray[np.float32]:
        """In the order of the walk; not a number where a patch could not be read."""
        return np.where(self.whole, dequantize(self.steps), np.nan).astype(np.float32)
