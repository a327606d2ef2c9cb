"""Where the network runs, and in which numbers."""

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

# CUDA's from Ampere on.
_COMPUTES_BFLOAT16 = (8, 0)


@dataclass(frozen=True, slots=True)
class Device:
    """A device and the type of the numbers that convolutions take there, float32 or bfloat16.

    Weights in training, statistics, the last layer and the loss are float32 with both.
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
        """The type's name."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.kind, dtype=self.dtype)

    def free_gib(self) -> float | None:
        """Free memory, GiB; None on a CPU."""
        return torch.cuda.mem_get_info(self.device)[0] / 2**30 if self.is_cuda else None


def pick_device(cpu_threads: int, precision: Precision = "auto") -> Device:
    """This process's CUDA device, else the CPU with exactly `cpu_threads` threads.

    The number of threads decides in which order a CPU adds numbers, and so the last bits of a result:
    it is fixed by the config and not by how many cores a scheduler grants.
    `precision` auto is bfloat16 on a GPU that computes with it, else float32. Raises `ModelError` where the device
    has no bfloat16.
    """
    # float32 is to mean float32, also where a GPU would round to TF32.
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
        place, name = torch.device("cpu"), "this CPU"
        has_bfloat16, preferred = torch.ops.mkldnn._is_mkldnn_bf16_supported(), torch.float32
    if precision == "bfloat16" and not has_bfloat16:
        raise ModelError(f"{name} does not compute with bfloat16", remedy="Set precision to auto or float32")
    found = Device(place, preferred if precision == "auto" else getattr(torch, precision))
    log.info("the network runs on %s, in %s", f"{name}, {place}" if found.is_cuda else name, found.precision)
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
    """A tensor of the CPU on the device, without waiting for what the device still does."""
    if to.type == "cuda":
        return tensor.pin_memory().to(to, non_blocking=True)
    return tensor.to(to)


def copy_to_cpu(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the CPU; the call returned waits for that, and for nothing begun later."""
    if not tensor.is_cuda:
        return lambda: tensor
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    here.copy_(tensor, non_blocking=True)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()

    def wait() -> Tensor:
        there.synchronize()
        return here

    return wait
