"""Snakemake and the command line in forks of processes that have imported them.

Imports, and the first figure of a process, take two thirds of the time of a job on a tiny slide. `make demo` and the
tests of single commands start both as users do.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import multiprocessing
import os
import pkgutil
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path

_FORKS = multiprocessing.get_context("fork")
# Replaces the command in the shells of jobs: it sends its arguments, folder, environment and open files to the server,
# and ends as the fork does. A fork whose client is killed is killed too.
_CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    call = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(call).to_bytes(8, "big")], [1, 2])
    server.sendall(call)
    answer = server.recv(4)
sys.exit(int.from_bytes(answer, "big") if answer else 1)
"""


def run_snakemake(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in `folder`, itself and its jobs in forks."""
    outputs = [folder / f"snakemake.{name}" for name in ("stdout", "stderr")]
    server, environment = _started("snakemake"), dict(os.environ) | _functions()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([str(folder), arguments, list(map(str, outputs)), environment]) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in outputs))


@cache
def _started(*arguments: str) -> subprocess.Popen[str]:
    """A server, which ends with this process: that holds the other end of its stdin."""
    return subprocess.Popen([sys.executable, "-P", __file__, *arguments], stdin=-1, stdout=-1, text=True)


@cache
def _functions() -> dict[str, str]:
    """The environment that makes the command a function of bash."""
    folder = Path(tempfile.mkdtemp(prefix="wsi-pipeline-tests-"))
    (folder / "client.py").write_text(_CLIENT)
    server = _started("commands", str(folder))
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    client = shlex.join([sys.executable, "-I", "-S", str(folder / "client.py"), str(folder / "socket")])
    return {"BASH_FUNC_wsi-pipeline%%": f'() {{ {client} "$@"; }}'}


def _serve_snakemake() -> None:
    import smart_open  # noqa: F401
    import snakemake.cli

    import wsi_pipeline.cohort.sheet
    import wsi_pipeline.config.loading
    import wsi_pipeline.provenance.run_record  # noqa: F401

    snakemake.cli.get_argument_parser()
    # Forks that collect garbage would copy all memory.
    gc.freeze()
    for line in sys.stdin:
        folder, arguments, outputs, environment = json.loads(line)
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in outputs]
        child = _FORKS.Process(
            target=_call, args=(snakemake.cli.main, ["snakemake", *arguments], folder, environment, files)
        )
        child.start()
        for file in files:
            os.close(file)
        child.join()
        print(child.exitcode, flush=True)


def _serve_commands(folder: Path) -> None:
    import wsi_pipeline

    for module in pkgutil.walk_packages(wsi_pipeline.__path__, "wsi_pipeline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    _draw_a_figure()
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in wait([server, sys.stdin]):
            client, _ = server.accept()
            _FORKS.Process(target=_handle, args=(client,)).start()
            client.close()
            # Ends those that are over.
            _FORKS.active_children()
    shutil.rmtree(folder)


def _draw_a_figure() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title("fonts are read")
    for kind in ("png", "pdf"):
        figure.savefig(io.BytesIO(), format=kind)


def _handle(client: socket.socket) -> None:
    length, files, *_ = socket.recv_fds(client, 8, 2)
    call = b""
    while len(call) < int.from_bytes(length, "big"):
        call += client.recv(1 << 16)
    arguments, folder, environment = json.loads(call)
    main = importlib.import_module("wsi_pipeline.cli.app").main
    child = _FORKS.Process(target=_call, args=(main, ["wsi-pipeline", *arguments], folder, environment, files))
    child.start()
    if child.sentinel not in wait([child.sentinel, client]):
        child.kill()
    child.join()
    code = child.exitcode or 0
    with suppress(BrokenPipeError):
        client.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))


def _call(
    main: Callable[[], None],
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    outputs: list[int],
) -> None:
    """Call `main` as a process would: with its arguments, folder, environment, standard output and error."""
    for stream, file in enumerate(outputs, start=1):
        os.dup2(file, stream)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    sys.argv = arguments
    main()


if __name__ == "__main__":
    if sys.argv[1] == "snakemake":
        _serve_snakemake()
    else:
        _serve_commands(Path(sys.argv[2]))
