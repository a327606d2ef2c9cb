"""The GPUs of this machine, which no test sees but those of test_cuda.py."""

from __future__ import annotations

import os

GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")


def hide() -> None:
    """Hide all GPUs from this process and its children: results are equal to the last bit on a CPU only."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
