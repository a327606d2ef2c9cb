"""A tiny cohort, its config and Snakemake, for the tests of the workflow."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from helpers.paths import ROOT
from wsi_pipeline.cohort.synthetic import SlideSpec

PLANS = (
    SlideSpec("normal-1", "train", "north"),
    SlideSpec("tumor-1", "train", "north", lesions=1),
    SlideSpec("tumor-2", "validation", "north", lesions=1),
    SlideSpec("normal-3", "test", "north"),
    SlideSpec("tumor-3", "test", "north", lesions=1),
)
CONFIG: dict[str, Any] = {
    "results": "results",
    "cohort": {"name": "tiny (synthetic)", "slides": "cohort/slides.tsv", "synthetic": True},
    "patches": {"mpp": 1.0, "size_px": 75, "stride_um": 40, "min_tissue": 0.5, "max_normal": 60},
    "training": {"start": "random", "batch_size": 8, "max_steps": 4, "validate_every": 2, "learning_rate": 1e-3},
    "evaluation": {"interval": {"resamples": 100}},
}


# Imports Snakemake and the package once, then runs each call in a fork: a dry run is imports for nine tenths.
_PRELOADED = """
import json, os, sys
import snakemake.cli, smart_open
import wsi_pipeline.cohort.sheet, wsi_pipeline.config.loading, wsi_pipeline.provenance.run_record
snakemake.cli.get_argument_parser()
for line in sys.stdin:
    folder, arguments, outputs = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for stream, path in enumerate(outputs, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.argv = ["snakemake", *arguments]
        snakemake.cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def snakemake(folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> subprocess.CompletedProcess[str]:
    """Run the workflow in `folder`."""
    command = [sys.executable, "-m", "snakemake", *_arguments(folder, config), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def planned_snakemake(
    folder: Path, *arguments: str, config: dict[str, Any] = CONFIG
) -> subprocess.CompletedProcess[str]:
    """As `snakemake`, for calls that end before any job: quick, and with the environment of the first such call."""
    command = [*_arguments(folder, config), *arguments]
    outputs = [folder / f"snakemake.{name}" for name in ("stdout", "stderr")]
    process = _preloaded()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([str(folder), command, list(map(str, outputs))]) + "\n")
    process.stdin.flush()
    code = int(process.stdout.readline())
    return subprocess.CompletedProcess(command, code, *(path.read_text() for path in outputs))


@cache
def _preloaded() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _PRELOADED], stdin=-1, stdout=-1, text=True)


def _arguments(folder: Path, config: dict[str, Any]) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--configfile", "config.yaml"]
    return [*arguments, "--cores", "2", "--scheduler", "greedy", "--keep-going"]
