from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from helpers.slides import tissue_picture, write_tiff
from wsi_pipeline.progress_bar import ProgressBar, track

PROGRAM = Path(sys.executable).with_name("wsi-pipeline")


def run_on_a_terminal(command: list[str]) -> str:
    """The output of a program whose stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stderr=theirs, stdout=theirs, env=environment)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # The program has closed its end.
            break
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode()


def test_a_terminal_has_bars_and_a_log_has_lines(tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "a.tif", tissue_picture())
    command = [str(PROGRAM), "convert", str(slide), "--slide", "a", "--verify", "all"]
    command += ["--store", str(tmp_path / "a.ome.zarr"), "--receipt", str(tmp_path / "a.json")]
    seen = run_on_a_terminal(command)
    assert re.search(r"level 0 .*\d+/\d+", seen)
    assert "comparing level 0 " in seen
    # The cursor is visible again, and the last line is the intact result.
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") > 0
    last = seen.rstrip().splitlines()[-1]
    assert re.fullmatch(r"(\x1b\[[?\d;]*[A-Za-z]|\r)*a: \d+ x \d+ px .*", last), last
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "\x1b" not in log
    assert log.splitlines()[-1] in last


def test_hidden_progress_bars_do_not_import_rich() -> None:
    assert list(track(range(3), "things", 3)) == [0, 1, 2]
    with ProgressBar("things", 3) as shown:
        shown.advance()
        shown.update(3, "a note")
    code = "import sys; from wsi_pipeline.progress_bar import ProgressBar; ProgressBar('a', 1).close(); "
    code += "print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rich.progress" not in done.stdout
