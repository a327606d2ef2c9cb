"""Commands in child processes, and faults that are injected into them."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str


def child(folder: str, command: tuple[str, ...], log: str, fault: Callable[[], None] | None) -> None:
    """Body of a child process: inject `fault`, then run the command line of the package."""
    os.chdir(folder)
    # A pipe, because the simulated full disk limits the size of files.
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = list(command)
    if fault is not None:
        fault()
    from wsi_pipeline.cli.app import main

    main()


class RunningChild:
    """A running child and its output."""

    def __init__(self, process: Any, pipe: Path) -> None:
        self.process, self.output = process, ""
        self.reader = Thread(target=self.read, args=(pipe,), daemon=True)
        self.reader.start()

    def read(self, pipe: Path) -> None:
        self.output = pipe.read_text(errors="replace")

    def end(self) -> Outcome:
        self.process.join(120)
        assert self.process.exitcode is not None, "the child does not end"
        self.reader.join(10)
        return Outcome(self.process.exitcode, self.output)


class KillBefore:
    """Send SIGKILL instead of the n-th rename to a final name."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> None:
        rename = os.replace
        left = self.number

        def replace(*arguments: Any, **keywords: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments, **keywords)

        os.replace = replace  # type: ignore[assignment]


class FullDisk:
    """Limit the size of files: writes fail in the kernel, as on a full disk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
