"""The workflow on a real one-node SLURM: `tests/slurm/cluster.sh up`, then WSI_PIPELINE_TEST_SLURM=1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import CONFIG, ROOT

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not os.environ.get("WSI_PIPELINE_TEST_SLURM"),
        reason="no SLURM: run tests/slurm/cluster.sh up and set WSI_PIPELINE_TEST_SLURM=1",
    ),
]


GPU_JOBS = (
    "train_wildcards_inception_v3",
    "heatmap_wildcards_inception_v3_normal-3",
    "heatmap_wildcards_inception_v3_tumor-3",
)


def test_a_cohort_goes_through_slurm_with_the_same_result(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "cohort", tmp_path / "cohort")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--profile", str(ROOT / "profiles" / "slurm"), "--configfile", "config.yaml"]
    # The profile polls every 5 s and first after 40 s, which is right for jobs of minutes.
    command += ["--slurm-init-seconds-before-status-checks", "3", "--max-status-checks-per-second", "1"]
    # No accounting here, so there is no account to name.
    command += ["--slurm-no-account", "--default-resources", "slurm_partition=cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = Path("results", "evaluation", "inception_v3", "metrics.json")
    assert (tmp_path / metrics).read_bytes() == (finished / metrics).read_bytes()
    assert (tmp_path / "results" / "report.html").is_file()

    columns = "Partition:.20,Comment:.100,tres-per-job:.40,State:.20,WorkDir:.300"
    listed = subprocess.run(
        ["squeue", "--noheader", "--states=all", f"--Format={columns}"], capture_output=True, text=True, check=True
    ).stdout
    jobs = [line.split() for line in listed.splitlines() if str(tmp_path) in line]
    on_gpu = {comment for partition, comment, gres, *_ in jobs if partition == "gpu" and gres == "gres:gpu:1"}
    on_cpu = {comment for partition, comment, gres, *_ in jobs if partition == "cpu" and gres == "N/A"}
    assert len(on_gpu) + len(on_cpu) == len(jobs)
    assert on_gpu == {f"rule_{job}" for job in GPU_JOBS}
    assert {state for *_, state, _ in jobs} == {"COMPLETED"}
