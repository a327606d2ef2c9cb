from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path


def test_mutated_slides_give_an_error_line_or_a_complete_store() -> None:
    fuzz = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, str(fuzz), "--seconds", "60", "--most", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("12 mutated slides")
    assert "'refused'" in done.stdout
    assert "'whole'" in done.stdout


def test_tiffs_of_a_dozen_layouts_are_read_right_or_refused() -> None:
    fuzz = Path(__file__).with_name("fuzz_kinds.py")
    command = [sys.executable, str(fuzz), "--count", "12", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *table = done.stdout.splitlines()
    assert first == "12 TIFF files of different layouts"
    counts = {name: int(count) for name, count in (line.split() for line in table)}
    assert counts["wrong"] == 0
    assert counts["right"] + counts["refused"] == 12
    assert counts["right"] >= 5


def run_isolated_in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    whole = "import os, signal, sys, time\nfrom wsi_pipeline.errors import StoreError\n"
    whole += f"from wsi_pipeline.slides.crash_isolation import CrashError, run_isolated\ndef run():\n    {code}\n"
    whole += "try:\n    sys.exit(run_isolated(run))\nexcept CrashError as crash:\n    print('crash', crash)"
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)


def test_exit_codes_of_an_isolated_function() -> None:
    assert run_isolated_in_a_process("pass").returncode == 0
    mistake = run_isolated_in_a_process("raise StoreError('a.zarr: not there', remedy='Make it')")
    assert (mistake.returncode, mistake.stderr) == (2, "error: a.zarr: not there. Make it\n")
    bug = run_isolated_in_a_process("1 / 0")
    assert bug.returncode == 1
    assert "ZeroDivisionError" in bug.stderr
    crash = run_isolated_in_a_process("os.kill(os.getpid(), signal.SIGSEGV)")
    assert crash.stdout == "crash SIGSEGV\n"
    for number in (signal.SIGKILL, signal.SIGTERM):
        assert run_isolated_in_a_process(f"os.kill(os.getpid(), {int(number)})").returncode == -number


def test_the_fork_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, time\nfrom pathlib import Path\nfrom wsi_pipeline.slides.crash_isolation import run_isolated\n"
        f"def run():\n    Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "run_isolated(run)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert parent.poll() is None
        parent.kill()
    child = Path("/proc") / (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 20
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline, "the fork outlived its parent"
        time.sleep(0.01)


def test_a_crash_names_slide_file_and_remedy(tmp_path: Path) -> None:
    source, out = tmp_path / "s.tif", tmp_path / "out"
    out.mkdir()
    source.touch()
    (out / ".partial-0123abcd-p.ome.zarr").mkdir()
    code = (
        "import os, signal\nfrom wsi_pipeline.cli import app as cli\nfrom wsi_pipeline.stages import convert\n"
        "convert.run = lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV)\ncli.main()"
    )
    arguments = ["convert", source, "--slide", "s1", "--store", out / "p.ome.zarr", "--receipt", out / "p.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    message = f"error: slide s1: {source}: the libraries that read slides crashed on it (SIGSEGV). It is damaged"
    assert done.stderr.startswith(message)
    assert list(out.iterdir()) == []
