"""Signals of schedulers and terminals that stop a training."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM, SIGINT and SIGUSR1. A second Ctrl-C interrupts at once."""

    def handle(number: int, _: FrameType | None) -> None:
        log.info("%s: a checkpoint is written after this step", signal.Signals(number).name)
        # Only Ctrl-C gets its handler back: at a time limit SLURM sends SIGTERM repeatedly, which must not kill the
        # process before the checkpoint is written.
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])
        stop()

    before = {number: signal.signal(number, handle) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
