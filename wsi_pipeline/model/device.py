"""Where the network runs."""

from __future__ import annotations

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

    def autocast(self) -> AbstractContextManager[object]:
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()


def pick_device(cpu_threads: int) -> Device:
    """The first CUDA device, else the CPU with exactly `cpu_threads` threads.

    The number of threads decides in which order a CPU adds numbers, and so the last bits of a result:
    it is fixed by the config and not by how many cores a scheduler grants.
    """
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        return Device(torch.device("cuda"))
    torch.set_num_threads(cpu_threads)
    return Device(torch.device("cpu"))
