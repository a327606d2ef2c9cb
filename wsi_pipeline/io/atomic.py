"""Atomic writes: an output appears at its path only when it is complete."""

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

# File in a staging folder while its writer still owns it.
_OWNER_MARK = ".owned"

# No space left, or a read-only file system.
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM})


def is_out_of_space(error: OSError) -> bool:
    """Whether a write failed for lack of space or on a read-only file system."""
    return error.errno in _OUT_OF_SPACE


@contextmanager
def atomic_output(target: Path) -> Iterator[Path]:
    """Yield a temporary path, with the name of `target`, in a hidden staging folder beside it.

    The block writes a file or a folder there, which replaces `target` when the block ends. On any exception it is
    removed and `target` stays as it was. Raises `StoreError` without space or permission to write, and where another
    process has started to write the same target: the process that started first gives up, because it may be the
    remains of a job that a cluster has restarted after it lost a node.
    """
    staging = target.with_name(f".partial-{secrets.token_hex(4)}-{target.name}")
    mark = staging / _OWNER_MARK
    is_taken = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial_outputs = _partial_outputs(target)
        staging.mkdir()
        try:
            mark.touch()
            for partial_output in partial_outputs:
                _take_over(partial_output, staging)
            yield staging / target.name
            # Fails if another process took the folder: a writer that creates missing folders would not notice.
            mark.open().close()
            _replace(target, staging)
        finally:
            # Not every library names the file that it could not open in a folder that another process has taken.
            is_taken = not mark.exists()
            remove(staging)
    except OSError as error:
        name = None if error.filename is None else Path(os.fsdecode(error.filename))
        is_beside_target = name is not None and name.is_relative_to(target.parent)
        # ENOTEMPTY: the other process has just put its own output in place.
        if error.errno == errno.ENOTEMPTY or (
            error.errno == errno.ENOENT and (is_taken or (name is not None and name.is_relative_to(staging)))
        ):
            raise StoreError(
                f"{target}: another process is writing it too", remedy="Wait for the other run to end"
            ) from error
        if is_out_of_space(error) or (error.errno in _NO_PERMISSION and is_beside_target):
            raise StoreError(
                f"{target}: cannot be written ({os.strerror(error.errno or 0)})",
                remedy="Free space or give permission there, or put the results elsewhere (results in the config)",
            ) from error
        raise


def _replace(target: Path, staging: Path) -> None:
    """Put the output of `staging` in the place of `target`, which stays where that fails."""
    output, replaced = staging / target.name, staging / ".replaced"
    output.lstat()
    if target.is_dir():
        with suppress(FileNotFoundError):
            target.rename(replaced)
    try:
        output.replace(target)
    except OSError:
        with suppress(OSError):
            replaced.rename(target)
        raise


def remove_partial_outputs(target: Path) -> None:
    """Remove partial outputs of `target` that killed processes left behind."""
    for partial_output in _partial_outputs(target) if target.parent.is_dir() else ():
        remove(partial_output)


def _partial_outputs(target: Path) -> list[Path]:
    partial_output = re.compile(rf"\.partial-[0-9a-f]{{8}}-{re.escape(target.name)}")
    return [path for path in target.parent.iterdir() if partial_output.fullmatch(path.name)]


def _take_over(partial_output: Path, staging: Path) -> None:
    """Move another process's staging folder in one step, so that it finds the folder missing, never half deleted."""
    # Another process may do the same at the same time.
    with suppress(FileNotFoundError):
        (partial_output / _OWNER_MARK).unlink(missing_ok=True)
        partial_output.rename(staging / partial_output.name)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    # Another process may do the same at the same time.
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_output(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
