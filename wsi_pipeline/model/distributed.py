"""Data-parallel training: several processes train one network, one GPU each.

Under `torchrun` the processes find each other through its environment variables; under `launch_processes` through a
file that all of them can open. Connections of the Gloo backend use the loopback interface only.
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

import torch
import torch.distributed as dist
from torch import Tensor

# Exit code of a training that stopped on a signal and can be resumed (EX_TEMPFAIL of sysexits.h).
STOPPED_EXIT_CODE = 75

_RENDEZVOUS = "WSI_PIPELINE_RENDEZVOUS"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_STOP_GRACE_SECONDS = 60.0
_FAILURE_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """Rank of this process, and the number of processes that train together."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process's share of `count` patches. The shards of all ranks are disjoint and cover all patches."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of all processes in the order of their ranks; `counts` holds the number of rows of each rank."""
        if self.world_size == 1:
            return values
        rows = max(counts)
        padded = torch.zeros(rows, *values.shape[1:], dtype=values.dtype, device=values.device)
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Close the connections to the other processes."""
        if self.world_size > 1:
            dist.destroy_process_group()


def init_distributed() -> DistributedContext:
    """Join the process group given by RANK and WORLD_SIZE; without them the context of a single process."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return DistributedContext()
    rank = int(os.environ["RANK"])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rendezvous = os.environ.get(_RENDEZVOUS)
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{rendezvous}" if rendezvous else "env://",
        rank=rank,
        world_size=world_size,
    )
    return DistributedContext(rank, world_size)


def is_worker_process() -> bool:
    """Whether `launch_processes` or `torchrun` started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `wsi-pipeline` with `arguments` in `count` processes; returns the first non-zero exit code, else 0.

    SIGTERM, SIGINT and SIGUSR1 are forwarded to all of them. `torchrun` does not do for this: it ends with exit code 1
    whatever its processes return, so a stopped training would look like a failed one.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            environment = {**os.environ, **ranks, _RENDEZVOUS: str(Path(folder, "store"))}
            command = [sys.executable, "-m", "wsi_pipeline", *arguments]
            # In a session of its own: otherwise Ctrl-C would reach it twice, from the terminal and from here.
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True))  # noqa: S603 (our own)

        def forward(number: int, _: FrameType | None) -> None:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)

        before = {number: signal.signal(number, forward) for number in _FORWARDED}
        try:
            return _wait_for_all(processes)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _wait_for_all(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes; after a failure end the others, which would wait for the failed one forever."""
    code = 0
    running = list(processes)
    while running and not code:
        for process in list(running):
            try:
                code = code or process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            running.remove(process)
    for process in running:
        try:
            # A process that was told to stop makes the others stop at the same step.
            process.wait(timeout=_STOP_GRACE_SECONDS if code == STOPPED_EXIT_CODE else _FAILURE_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return code
