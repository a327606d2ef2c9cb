"""Progress bars on stderr, shown only on a terminal; elsewhere, as in cluster jobs, the log reports progress."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Whether stderr is a terminal, so that bars are shown."""
    return sys.stderr.isatty()


class ProgressBar:
    """A progress bar, shown until it is closed; thread-safe. Concurrent bars share one display."""

    _lock = threading.Lock()
    _display: Progress | None = None
    _open_bars = 0

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._task: TaskID | None = None
        if not on_terminal():
            return
        # Imported here because rich is slow to import and jobs do not need it.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with ProgressBar._lock:
            if ProgressBar._display is None:
                ProgressBar._display = Progress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[note]}", markup=False),
                    console=Console(stderr=True),
                    transient=True,
                )
                ProgressBar._display.start()
            ProgressBar._open_bars += 1
            self._task = ProgressBar._display.add_task(title, total=total, completed=done, note="")

    def advance(self, count: int = 1) -> None:
        """Add `count` to the completed amount."""
        if self._task is not None and ProgressBar._display is not None:
            ProgressBar._display.advance(self._task, count)

    def update(self, done: int, note: str = "") -> None:
        """Set the completed amount, and a `note` beside the bar."""
        if self._task is not None and ProgressBar._display is not None:
            ProgressBar._display.update(self._task, completed=done, note=note)

    def close(self) -> None:
        """Remove the bar; the log reports the result."""
        with ProgressBar._lock:
            if self._task is None or ProgressBar._display is None:
                return
            ProgressBar._display.remove_task(self._task)
            self._task = None
            ProgressBar._open_bars -= 1
            if not ProgressBar._open_bars:
                ProgressBar._display.stop()
                ProgressBar._display = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yield the items with a progress bar; an item counts as done when the next one is requested."""
    with ProgressBar(title, total) as shown:
        for item in items:
            yield item
            shown.advance()
