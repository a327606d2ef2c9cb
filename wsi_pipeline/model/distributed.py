"""Several processes that train one network, a GPU each (or, for tests, the CPU): data parallel.

They find each other through torchrun's environment variables, or through a file where `launch` started them.
All connections stay on the loopback interface.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Exit code of a training that was told to stop and can go on (EX_TEMPFAIL of sysexits.h).
STOPPED = 75

_STORE = "WSI_PIPELINE_TEAM"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_GRACE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Team:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's part of `count` patches."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the team, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all, in the order of the ranks; `counts` says how many each has."""
        if self.size == 1:
            return values
        rows = max(counts)
        padded = torch.zeros(rows, *values.shape[1:], dtype=values.dtype, device=values.device)
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Close the connections."""
        if self.size > 1:
            dist.destroy_process_group()


def join() -> Team:
    """The team that the environment names; alone where it names none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    rank = int(os.environ["RANK"])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = os.environ.get(_STORE)
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{store}" if store else "env://",
        rank=rank,
        world_size=size,
    )
    return Team(rank, size)


def is_member() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(size: int, arguments: Sequence[str]) -> int:
    """Run `wsi-pipeline` with `arguments` in `size` processes; signals go to all. Returns the first exit code but 0."""
    with tempfile.TemporaryDirectory() as folder:
        members: list[subprocess.Popen[bytes]] = []
        for rank in range(size):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            environment = {**os.environ, **place, _STORE: str(Path(folder, "store"))}
            command = [sys.executable, "-m", "wsi_pipeline", *arguments]
            # A session of its own: the terminal's Ctrl-C comes through us, and once.
            members.append(subprocess.Popen(command, env=environment, start_new_session=True))  # noqa: S603 (our own)

        def forward(number: int, _: FrameType | None) -> None:
            for member in members:
                if member.poll() is None:
                    member.send_signal(number)

        before = {number: signal.signal(number, forward) for number in _FORWARDED}
        try:
            return _first_failure(members)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _first_failure(members: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; where one fails the others, which wait for it, are stopped."""
    code = 0
    running = list(members)
    while running and not code:
        for member in list(running):
            try:
                code = code or member.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            running.remove(member)
    for member in running:
        try:
            # One that was told to stop stops the others itself, at the same step.
            member.wait(timeout=_GRACE_SECONDS if code == STOPPED else 5)
        except subprocess.TimeoutExpired:
            member.kill()
            member.wait()
    return code


def with_shared_statistics(network: nn.Module, team: Team) -> nn.Module:
    """The network with batch norms over the patches of all processes."""
    if team.size == 1:
        return network
    if next(network.parameters()).is_cuda:
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return shared
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SharedBatchNorm2d.of(child))
    return network


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the patches of all processes, for the CPU, where torch has none."""

    @classmethod
    def of(cls, other: nn.BatchNorm2d) -> SharedBatchNorm2d:
        new = cls(other.num_features, eps=other.eps, momentum=other.momentum)
        new.to(other.weight).load_state_dict(other.state_dict())
        return new

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        given, x = x.dtype, x.to(self.weight.dtype)
        count = _summed(torch.tensor(float(x.numel() // self.num_features)))
        mean = _summed(x.sum(dim=(0, 2, 3))) / count
        away = x - mean[:, None, None]
        variance = _summed((away * away).sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            share: Any = self.momentum
            self.get_buffer("running_mean").lerp_(mean, share)
            self.get_buffer("running_var").lerp_(variance * count / (count - 1), share)
            self.get_buffer("num_batches_tracked").add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out: Tensor = away * scale[:, None, None] + self.bias[:, None, None]
        return out.to(given)


class _Sum(torch.autograd.Function):
    """Sum over the team; the gradient of a part is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004 (torch's signature)
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total
