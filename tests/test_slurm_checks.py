"""Checks before jobs are submitted to SLURM, with stubs of SLURM's commands."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from slurm_checks import COMMANDS, cancel_leftovers, check_slurm
from wsi_pipeline.errors import ConfigError


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of jobs (number|name), from which the stub of scancel deletes. The partitions are cpu and gpu."""
    jobs = tmp_path / "jobs"
    jobs.write_text("1|other\n2|wsi-pipeline_a\n3|wsi-pipeline_a\n4|wsi-pipeline_b\n")
    scripts = {
        "sbatch": "exit 1",
        "sinfo": "printf 'cpu\\ngpu\\n'",
        "squeue": f"cat {jobs}",
        "scancel": f'for n in "$@"; do sed -i "/^$n|/d" {jobs}; done',
    }
    assert set(scripts) == set(COMMANDS)
    for name, script in scripts.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return jobs


def run(name: str | None, *, pid: int, started: float, host: str = platform.node()) -> dict[str, Any]:
    return {
        "slurm_jobs": name,
        "process": {"host": host, "pid": pid, "started": started},
        "started": "2026-11-23T15:00:00+00:00",
    }


def ended_process() -> dict[str, Any]:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(process.pid).create_time()
    process.wait()
    return {"pid": process.pid, "started": started}


def test_partitions_and_commands_are_checked(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_slurm({"train": "gpu", "convert": "cpu,gpu"})
    with pytest.raises(ConfigError, match=r"rule train: SLURM has no partition gpus \(did you mean gpu\?\)\. Set"):
        check_slurm({"convert": "cpu", "train": "gpus"})
    (queue.parent / "bin" / "sinfo").write_text("#!/bin/sh\necho 'slurmctld is down' >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"sinfo: slurmctld is down\. Ask"):
        check_slurm({})
    monkeypatch.setenv("PATH", str(queue.parent))
    with pytest.raises(ConfigError, match=r"not on the PATH: sbatch, squeue, scancel, sinfo\. Start on a login node"):
        check_slurm({})


def test_the_jobs_of_a_dead_run_are_cancelled(queue: Path) -> None:
    assert cancel_leftovers([run(None, **ended_process()), run("wsi-pipeline_a", **ended_process())]) == ["2", "3"]
    assert queue.read_text() == "1|other\n4|wsi-pipeline_b\n"
    assert cancel_leftovers([run("wsi-pipeline_a", **ended_process())]) == []


def test_the_jobs_of_a_live_run_are_kept(queue: Path) -> None:
    started = psutil.Process().create_time()
    before = queue.read_text()
    assert cancel_leftovers([run("wsi-pipeline_a", pid=os.getpid(), started=started)]) == []
    assert queue.read_text() == before
    # The pid now belongs to another process.
    assert cancel_leftovers([run("wsi-pipeline_a", pid=os.getpid(), started=started - 1)]) == ["2", "3"]


def test_a_run_on_another_machine_is_named(queue: Path) -> None:
    before = queue.read_text()
    with pytest.raises(ConfigError, match=r"started on login2 at 2026-11-23.*scancel 2 3"):
        cancel_leftovers([run("wsi-pipeline_a", **ended_process(), host="login2")])
    assert queue.read_text() == before
    assert cancel_leftovers([run("wsi-pipeline_gone", **ended_process(), host="login2")]) == []
