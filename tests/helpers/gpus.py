"""The GPUs of this machine, which are hidden from all tests except test_cuda.py."""

from __future__ import annotations

import os

GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")


def hide() -> None:
    """Hide all GPUs from this process and its children: results are reproducible bit for bit only on a CPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
