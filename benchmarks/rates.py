"""Steady-state rates in patches per second. Imports only the standard library, so that it runs in any environment."""

from __future__ import annotations

import time
from collections.abc import Iterable

WARM_SECONDS = 5.0


class Pace:
    """Patches per second over `seconds` seconds, after a warm-up of `WARM_SECONDS`."""

    def __init__(self, seconds: float) -> None:
        self._began = self._now = time.perf_counter()
        self._end = self._began + WARM_SECONDS + seconds
        self._first: tuple[float, int] | None = None
        self._done = 0

    def is_over(self, count: int) -> bool:
        """Count `count` more finished patches and return whether the measurement is over."""
        self._now = time.perf_counter()
        self._done += count
        if self._first is None and self._now - self._began > WARM_SECONDS:
            self._first = self._now, self._done
        return self._now > self._end

    def rate(self) -> float:
        if self._first is None or self._now == self._first[0]:
            raise SystemExit("the slide is too small: it was finished before the warm-up ended")
        return (self._done - self._first[1]) / (self._now - self._first[0])


def rate(counts: Iterable[int], seconds: float) -> float:
    """Patches per second of an iterable that yields the size of each finished batch."""
    pace = Pace(seconds)
    for count in counts:
        if pace.is_over(count):
            break
    return pace.rate()
