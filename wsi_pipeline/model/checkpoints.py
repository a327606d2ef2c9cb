"""Checkpoints of a training: the newest and its predecessor.

File format: the output of `torch.save`, which holds tensors and plain values only, followed by its SHA-256 (32 bytes).
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.atomic import atomic_output

log = logging.getLogger(__name__)

_DIGEST = 32

Content = dict[str, Any]


class Checkpoints:
    """The two newest checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self._newest = folder / "checkpoint.pt"
        self._previous = folder / "checkpoint-before.pt"

    def __str__(self) -> str:
        return str(self._newest)

    def save(self, content: Content) -> bool:
        """Write a checkpoint. On a full disk keep the old ones, log a warning and return False."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        try:
            # The view is released here: one that outlives its buffer in a traceback is an error on Python 3.13.
            with buffer.getbuffer() as data, atomic_output(self._newest) as partial:
                with partial.open("wb") as file:
                    file.write(data)
                    file.write(hashlib.sha256(data).digest())
                if self._newest.exists():
                    self._newest.replace(self._previous)
        except StoreError as error:
            log.warning("no checkpoint at step %s: %s", content["step"], error)
            return False
        return True

    def load(self, inputs: str, device: torch.device) -> Content | None:
        """The newest intact checkpoint of a training on these `inputs` (a digest), or None."""
        for path in (self._newest, self._previous):
            if not path.is_file():
                continue
            data = path.read_bytes()
            body, digest = data[:-_DIGEST], data[-_DIGEST:]
            if hashlib.sha256(body).digest() != digest:
                log.warning("%s: ignored, it is damaged", path)
                continue
            content: Content = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
            if content["inputs"] == inputs:
                return content
            log.info("%s: ignored, it was made from other inputs", path)
        return None

    def remove(self) -> None:
        """Remove both files."""
        for path in (self._newest, self._previous):
            path.unlink(missing_ok=True)
