"""A tiny cohort, its config and Snakemake, for the tests of the workflow."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from helpers.paths import ROOT
from helpers.preloaded import run_snakemake
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
    # With a higher rate the network diverges: all scores tie, and figures of different runs are equal.
    "training": {"start": "random", "batch_size": 8, "max_steps": 4, "validate_every": 2, "learning_rate": 1e-4},
}
BATCHED = CONFIG | {"heatmap": {"slides_per_job": 2}}

# Number of jobs by rule: for one slide, for one test slide, for the aggregation without and with a changed receipt, and
# for training.
SLIDE_JOBS = {"convert": 1, "tissue": 1, "truth": 1}
TEST_JOBS = {**SLIDE_JOBS, "heatmap": 1, "scores": 1, "confusion": 1}
AGGREGATION = {"evaluate": 1, "report": 1, "all": 1}
EVALUATION = {"evaluation_manifest": 1, **AGGREGATION}
TRAINING = {"training_manifest": 1, "train": 1}
# All test slides predicted again, and what depends on the model.
PREDICTED = {"heatmap": 2, "scores": 2, "confusion": 2}
MODEL = TRAINING | PREDICTED | EVALUATION


def snakemake(folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> subprocess.CompletedProcess[str]:
    """Run the workflow in `folder`, in forks of processes that have imported what it needs."""
    return run_snakemake(folder, [*_arguments(folder, config), *arguments])


def new_snakemake(folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> subprocess.CompletedProcess[str]:
    """Run the workflow in `folder`, in new processes, as users do."""
    command = [sys.executable, "-m", "snakemake", *_arguments(folder, config), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def started_snakemake(folder: Path, *arguments: str, config: dict[str, Any]) -> subprocess.Popen[str]:
    """Start the workflow in `folder`, in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", *_arguments(folder, config), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True, start_new_session=True)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _arguments(folder: Path, config: dict[str, Any]) -> list[str]:
    write_config(folder, config)
    arguments = ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--configfile", "config.yaml"]
    return [*arguments, "--cores", "2", "--scheduler", "greedy", "--keep-going"]


def planned(folder: Path, config: dict[str, Any] = CONFIG, run: Callable[..., Any] = snakemake) -> Counter[str]:
    """The jobs of a dry run, by rule."""
    result = run(folder, "--dry-run", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    output = result.stdout + result.stderr
    if "Nothing to be done" in output:
        return Counter()
    table = output.split("Job stats:")[1].split("total")[0]
    return Counter({m[1]: int(m[2]) for m in re.finditer(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)})


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    """The config with some keys of some sections changed."""
    return CONFIG | {name: CONFIG.get(name, {}) | values for name, values in sections.items()}


def add_row(folder: Path, source: str, slide: str, **cells: str) -> None:
    """Add a slide to the sheet: the row of `source` with another id and other cells."""
    sheet = folder / "cohort" / "slides.tsv"
    lines = sheet.read_text().splitlines()
    header = lines[1].split("\t")
    row = dict(zip(header, next(x for x in lines if x.startswith(source)).split("\t"), strict=True))
    row |= {"slide": slide, "patient": "", **cells}
    sheet.write_text("\n".join([*lines, "\t".join(row[name] for name in header)]) + "\n")


def edit_row(folder: Path, slide: str, **cells: str) -> None:
    """Change cells of a slide in the sheet."""
    add_row(folder, slide, slide, **cells)
    sheet = folder / "cohort" / "slides.tsv"
    lines = sheet.read_text().splitlines(True)
    lines[next(number for number, line in enumerate(lines) if line.startswith(f"{slide}\t"))] = lines.pop()
    sheet.write_text("".join(lines))


def remove_row(folder: Path, slide: str) -> None:
    sheet = folder / "cohort" / "slides.tsv"
    sheet.write_text("".join(x for x in sheet.read_text().splitlines(True) if not x.startswith(f"{slide}\t")))
