"""Progress bars for who waits at a terminal. Where stderr is none, as in jobs, there are only the lines of the log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Whether bars are shown."""
    return sys.stderr.isatty()


class ProgressBar:
    """How much of something is done, from its beginning until it is closed; safe between threads."""

    _lock = threading.Lock()
    # Where all bars are that are there at the same time, and how many.
    _screen: Progress | None = None
    _count = 0

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._task: TaskID | None = None
        if not on_terminal():
            return
        # Not needed by jobs, and slow to import.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with ProgressBar._lock:
            if ProgressBar._screen is None:
                about = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
                ProgressBar._screen = Progress(
                    about[0],
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                    about[1],
                    console=Console(stderr=True),
                    transient=True,
                )
                ProgressBar._screen.start()
            ProgressBar._count += 1
            self._task = ProgressBar._screen.add_task(title, total=total, completed=done, note="")

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        if self._task is not None and ProgressBar._screen is not None:
            ProgressBar._screen.advance(self._task, count)

    def update(self, done: int, note: str = "") -> None:
        """So much is done by now; `note` is shown beside it."""
        if self._task is not None and ProgressBar._screen is not None:
            ProgressBar._screen.update(self._task, completed=done, note=note)

    def close(self) -> None:
        """Take it off the screen; the log says what came of it."""
        with ProgressBar._lock:
            if self._task is None or ProgressBar._screen is None:
                return
            ProgressBar._screen.remove_task(self._task)
            self._task = None
            ProgressBar._count -= 1
            if not ProgressBar._count:
                ProgressBar._screen.stop()
                ProgressBar._screen = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The items; each is done when the next one is asked for."""
    with ProgressBar(title, total) as shown:
        for item in items:
            yield item
            shown.advance()
