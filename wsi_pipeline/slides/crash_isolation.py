"""Running a function so that a crash inside a C library is told like any other damaged file.

Slide libraries read hostile bytes in C: a file can end the process where Python has no say. The work
is therefore done in a fork, begun before there are threads; it ends with its parent, and its parent
with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable

from wsi_pipeline.errors import PipelineError

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL})
_PR_SET_PDEATHSIG = 1


class CrashError(Exception):
    """The function ended its process by a signal that a bug in a library raises."""


def run_isolated(run: Callable[[], None]) -> int:
    """Run in a fork and return the exit code, 2 after a `PipelineError`, which is printed as one line.

    Raises `CrashError`. Another signal that ended the fork, such as that of the kernel for a lack of
    memory, is raised here too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_in_fork(run))
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    number = signal.Signals(os.WTERMSIG(status))
    if number in _CRASHES:
        raise CrashError(number.name)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def _in_fork(run: Callable[[], None]) -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        run()
        code = 0
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BaseException:  # noqa: BLE001 (the fork must not go on into its parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code
