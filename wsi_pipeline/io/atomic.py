"""Writing files so that a half-written one cannot look finished."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsi_pipeline.errors import StoreError

# In the folder of what is being written: it is the writer's own still.
_MARK = ".owned"

# What a file system answers when it has no room, or may not be written to at all.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM})


def is_out_of_space(error: OSError) -> bool:
    """Whether a file system refused to write for want of room, or altogether."""
    return error.errno in _NO_ROOM


@contextmanager
def atomic_output(target: Path) -> Iterator[Path]:
    """Yield a path of the target's name in a hidden folder beside it; it takes the target's place in the end.

    The block may make a file or a folder there. On any exception it is removed and the target is
    left as it was. Raises `StoreError` where there is no room or no permission to write, or where
    another process has begun to write the same target: the first one gives way, as it may be what a lost
    node still does for a job that has been started again.
    """
    workshop = target.with_name(f".partial-{secrets.token_hex(4)}-{target.name}")
    mark = workshop / _MARK
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        leftovers = _leftovers(target)
        workshop.mkdir()
        try:
            mark.touch()
            for leftover in leftovers:
                _take_over(leftover, workshop)
            yield workshop / target.name
            # A writer that makes missing folders goes on where its own was taken away, with half of a store.
            mark.open().close()
            if target.is_dir():
                with suppress(FileNotFoundError):
                    target.rename(workshop / ".replaced")
            (workshop / target.name).replace(target)
        finally:
            remove(workshop)
    except OSError as error:
        name = None if error.filename is None else Path(os.fsdecode(error.filename))
        here = name is not None and name.is_relative_to(target.parent)
        # Not empty: the other one has put its own in place just now.
        if error.errno == errno.ENOTEMPTY or (
            error.errno == errno.ENOENT and name is not None and name.is_relative_to(workshop)
        ):
            raise StoreError(
                f"{target}: another process writes it too", remedy="Let one run end before another one starts here"
            ) from error
        if is_out_of_space(error) or (error.errno in _NO_PERMISSION and here):
            raise StoreError(
                f"{target}: cannot be written ({os.strerror(error.errno or 0)})",
                remedy="Free space or give permission there, or put the results elsewhere (results in the config)",
            ) from error
        raise


def remove_partial_outputs(target: Path) -> None:
    """Remove what a process that was killed has left of `target`."""
    for leftover in _leftovers(target) if target.parent.is_dir() else ():
        remove(leftover)


def _leftovers(target: Path) -> list[Path]:
    leftover = re.compile(rf"\.partial-[0-9a-f]{{8}}-{re.escape(target.name)}")
    return [path for path in target.parent.iterdir() if leftover.fullmatch(path.name)]


def _take_over(leftover: Path, workshop: Path) -> None:
    """Take away what may still be written to, at once, so that its process finds it gone and never half there."""
    # Another process may do the same.
    with suppress(FileNotFoundError):
        (leftover / _MARK).unlink(missing_ok=True)
        leftover.rename(workshop / leftover.name)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    # Another process may do the same.
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_output(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
