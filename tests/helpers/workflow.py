"""A tiny cohort, its config and Snakemake, for the tests of the workflow."""

from __future__ import annotations

import subprocess
import sys
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


def snakemake(folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--configfile", "config.yaml", "--cores", "2", "--scheduler", "greedy", "--keep-going", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
