"""Where the network runs."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Device:
    """A device and the precision used on it: bf16 autocast on CUDA, float32 on CPU."""

    device: torch.device

    @property
    def kind(self) -> str:
        return self.device.type

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        if self.is_cuda:
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def free_gib(self) -> float | None:
        """Free memory, GiB; None on a CPU."""
        return torch.cuda.mem_get_info(self.device)[0] / 2**30 if self.is_cuda else None


def pick_device(cpu_threads: int) -> Device:
    """This process's CUDA device, else the CPU with exactly `cpu_threads` threads.

    The number of threads decides in which order a CPU adds numbers, and so the last bits of a result:
    it is fixed by the config and not by how many cores a scheduler grants.
    """
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        # What is not bf16 (the loss, the last layer's gradients) is small; TF32 keeps it on the fast units.
        torch.set_float32_matmul_precision("high")
        return Device(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
    torch.set_num_threads(cpu_threads)
    return Device(torch.device("cpu"))
