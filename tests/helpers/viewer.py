"""The viewer's server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(results: Path) -> Iterator[str]:
    """Run `wsi-pipeline view` and yield its address."""
    command = [str(Path(sys.executable).with_name("wsi-pipeline")), "view", str(results), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = re.search(r"http://127\.0\.0\.1:\d+/[0-9a-f]{32}/", process.stdout.readline())
    try:
        assert printed
        yield printed[0]
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
