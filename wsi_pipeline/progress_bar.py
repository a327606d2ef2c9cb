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


class Bar:
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

        with Bar._lock:
            if Bar._screen is None:
                about = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
                Bar._screen = Progress(
                    about[0],
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                    about[1],
                    console=Console(stderr=True),
                    transient=True,
                )
                Bar._screen.start()
            Bar._count += 1
            self._task = Bar._screen.add_task(title, total=total, completed=done, note="")

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        if self._task is not None and Bar._screen is not None:
            Bar._screen.advance(self._task, count)

    def at(self, done: int, note: str = "") -> None:
        """So much is done by now; `note` is shown beside it."""
        if self._task is not None and Bar._screen is not None:
            Bar._screen.update(self._task, completed=done, note=note)

    def close(self) -> None:
        """Take it off the screen; the log says what came of it."""
        with Bar._lock:
            if self._task is None or Bar._screen is None:
                return
            Bar._screen.remove_task(self._task)
            self._task = None
            Bar._count -= 1
            if not Bar._count:
                Bar._screen.stop()
                Bar._screen = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def tracked(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The items; each is done when the next one is asked for."""
    with Bar(title, total) as shown:
        for item in items:
            yield item
            shown.advance()
