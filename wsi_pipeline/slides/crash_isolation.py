"""Run a function in a child process so that a crash in a C library is reported like any other damaged file.

Slide libraries parse untrusted bytes in C, where a damaged file can kill the process without a Python exception. The
function therefore runs in a forked child. The fork must happen before any thread is started. The child is killed when
its parent dies, and the parent exits as the child did.
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
    """The child process died from a signal that indicates a library bug, such as SIGSEGV."""


def run_isolated(run: Callable[[], None]) -> int:
    """Run `run` in a forked child and return its exit code; 2 after a `PipelineError`, which is printed as one line.

    Raises `CrashError` where the child crashed. Any other fatal signal, such as SIGKILL from the kernel's
    out-of-memory killer, is raised again in this process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_run_in_child(run))
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


def _run_in_child(run: Callable[[], None]) -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        run()
        code = 0
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BaseException:  # noqa: BLE001 (the child must not return into the code of its parent)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code
