"""How many patches a second a loop gets done once it is warm. Of the standard library alone, for any environment."""

from __future__ import annotations

import time
from collections.abc import Iterable

WARM_SECONDS = 5.0


class Pace:
    """Patches a second between second 5 and the end, `seconds` later."""

    def __init__(self, seconds: float) -> None:
        self._began = self._now = time.perf_counter()
        self._end = self._began + WARM_SECONDS + seconds
        self._first: tuple[float, int] | None = None
        self._done = 0

    def is_over(self, count: int) -> bool:
        """To be asked whenever so many more are done."""
        self._now = time.perf_counter()
        self._done += count
        if self._first is None and self._now - self._began > WARM_SECONDS:
            self._first = self._now, self._done
        return self._now > self._end

    def rate(self) -> float:
        if self._first is None or self._now == self._first[0]:
            raise SystemExit("the slide is too small for so few seconds")
        return (self._done - self._first[1]) / (self._now - self._first[0])


def rate(counts: Iterable[int], seconds: float) -> float:
    """Of a loop that says how many each batch is when it is done."""
    pace = Pace(seconds)
    for count in counts:
        if pace.is_over(count):
            break
    return pace.rate()
