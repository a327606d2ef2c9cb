"""Device and precision of the network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from wsi_pipeline.config import Precision
from wsi_pipeline.errors import ModelError

log = logging.getLogger(__name__)

# Compute capability of Ampere, the first with bfloat16.
_COMPUTES_BFLOAT16 = (8, 0)


@dataclass(frozen=True, slots=True)
class Device:
    """A device and the dtype of convolutions on it, float32 or bfloat16.

    Trained weights, batch-norm statistics, the last layer and the loss are float32 in either case.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def kind(self) -> str:
        return self.device.type

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """Name of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which a float32 network computes in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.kind, dtype=self.dtype)

    def free_gib(self) -> float | None:
        """Free GPU memory, GiB; None on a CPU."""
        return torch.cuda.mem_get_info(self.device)[0] / 2**30 if self.is_cuda else None


def pick_device(cpu_threads: int, precision: Precision = "auto") -> Device:
    """This process's GPU, or the CPU with exactly `cpu_threads` threads.

    The number of threads determines the order of summation on a CPU and so the last bits of a result. It comes from
    the config, not from the cores that a scheduler grants, so that results can be reproduced.
    `precision` auto means bfloat16 on a GPU that supports it, else float32. Raises `ModelError` where bfloat16 is
    requested on a device without it, or where this process has no GPU of its own.
    """
    # Disable TF32 so that float32 is full precision.
    torch.backends.cudnn.allow_tf32 = False
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        place = torch.device("cuda", local_gpu())
        torch.cuda.set_device(place)
        name = torch.cuda.get_device_name(place)
        has_bfloat16 = torch.cuda.get_device_capability(place) >= _COMPUTES_BFLOAT16
        preferred = torch.bfloat16 if has_bfloat16 else torch.float32
    else:
        torch.set_num_threads(cpu_threads)
        place = torch.device("cpu")
        name = "this CPU"
        has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        preferred = torch.float32
    if precision == "bfloat16" and not has_bfloat16:
        raise ModelError(f"{name} does not support bfloat16", remedy="Set precision to auto or float32")
    found = Device(place, preferred if precision == "auto" else getattr(torch, precision))
    log.info("running the network on %s, in %s", f"{name}, {place}" if found.is_cuda else name, found.precision)
    return found


def local_gpu() -> int:
    """Number of this process's GPU among those visible: LOCAL_RANK where several processes train together, else 0.

    Schedulers restrict the visible GPUs by CUDA_VISIBLE_DEVICES. Raises `ModelError` where there are fewer GPUs than
    processes.
    """
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise ModelError(
            f"process {rank} of this training has no GPU: only {count} visible",
            remedy="Request as many GPUs as processes (gpu, --gpus)",
        )
    return rank


def to_device(tensor: Tensor, to: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the work queued there."""
    if to.type == "cuda":
        return tensor.pin_memory().to(to, non_blocking=True)
    return tensor.to(to)


def copy_to_cpu(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to the CPU. The returned call waits for the copy, not for work queued later."""
    if not tensor.is_cuda:
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
