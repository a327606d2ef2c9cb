"""The workflow on a real one-node SLURM: `tests/slurm/cluster.sh up`, then WSI_PIPELINE_TEST_SLURM=1."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT
from helpers.workflow import CONFIG

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("WSI_PIPELINE_TEST_SLURM"),
        reason="no SLURM: run tests/slurm/cluster.sh up and set WSI_PIPELINE_TEST_SLURM=1",
    ),
]


GPU_JOBS = {"train": 1, "heatmap": 2}
# More than a minute of training, because one minute is SLURM's shortest time limit.
STEPS = 400
STARTED: list[subprocess.Popen[str]] = []
OVER = {"COMPLETED", "FAILED", "CANCELLED", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL"}


@dataclass(frozen=True)
class SlurmJob:
    number: str
    rule: str
    partition: str
    gres: str
    state: str
    memory: str
    cores: str


def slurm_jobs(folder: Path) -> list[SlurmJob]:
    """All jobs of a folder that SLURM still lists, oldest first."""
    columns = "JobID:.20,Comment:.100,Partition:.20,tres-per-job:.40,State:.20,MinMemory:.20,NumCPUs:.20,WorkDir:.300"
    command = ["squeue", "--noheader", "--states=all", "--sort=i", f"--Format={columns}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [
        SlurmJob(number, re.sub("^rule_|_wildcards_.*", "", comment), partition, gres, state, memory, cores)
        for number, comment, partition, gres, state, memory, cores, place in rows
        if place == str(folder)
    ]


def until(seconds: float, event: str, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {event}"
        time.sleep(0.2)


def start(folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> subprocess.Popen[str]:
    """Start Snakemake with the profile for SLURM; its output goes to `snakemake.log`."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--profile", str(ROOT / "profiles" / "slurm"), "--configfile", "config.yaml"]
    # The profile polls every 5 s, first after 40 s, which suits jobs of minutes but not these.
    command += ["--slurm-init-seconds-before-status-checks", "3", "--max-status-checks-per-second", "1"]
    # The test cluster has no accounting, and so no account to name.
    command += ["--slurm-no-account", "--default-resources", "slurm_partition=cpu", *arguments]
    with (folder / "snakemake.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True)
    STARTED.append(process)
    return process


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    assert process.wait(1200) == 0, (folder / "snakemake.log").read_text()
    return (folder / "snakemake.log").read_text()


def is_running(folder: Path, rule: str) -> bool:
    return any(job.rule.startswith(rule) and job.state == "RUNNING" for job in slurm_jobs(folder))


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The tiny cohort; all its SLURM jobs are cancelled after the test."""
    shutil.copytree(finished / "cohort", tmp_path / "cohort")
    yield tmp_path
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
    subprocess.run(["scancel", *(job.number for job in slurm_jobs(tmp_path) if job.state not in OVER)], check=False)


@contextmanager
def lost_node() -> Iterator[None]:
    node = subprocess.run(["sinfo", "--noheader", "--format=%n"], capture_output=True, text=True, check=True).stdout
    update = ["scontrol", "update", f"nodename={node.split()[0]}"]
    subprocess.run([*update, "state=down", "reason=test"], check=True)
    try:
        yield
    finally:
        # The node's daemon is alive, so the node may have returned by itself; then resume fails.
        subprocess.run([*update, "state=resume"], check=False)


def test_a_run_survives_interruption_kill_and_node_loss(finished: Path, folder: Path) -> None:
    # Ctrl-C cancels the jobs.
    process = start(folder)
    until(180, "a slide is converted", lambda: is_running(folder, "slide_convert"))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    until(30, "all jobs are gone", lambda: all(job.state in OVER for job in slurm_jobs(folder)))

    # After kill -9 the jobs continue; the next run cancels them before they can write to the files of its own jobs.
    process = start(folder)
    until(300, "a slide is converted", lambda: list((folder / "results" / "slides").glob("*/pyramid.json")))
    process.kill()
    process.wait()
    left = [job for job in slurm_jobs(folder) if job.state not in OVER]
    assert left
    unlock = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--unlock"]
    subprocess.run([*unlock, "--configfile", "config.yaml"], cwd=folder, check=True, capture_output=True)
    before = {job.number for job in slurm_jobs(folder)}
    process, cancelled = start(folder), ""
    while not ({job.number for job in slurm_jobs(folder)} - before):
        if process.poll() is not None:
            # The cancelled jobs had just written files that were planned with, and removed them.
            cancelled = (folder / "snakemake.log").read_text()
            assert "after this run was planned. Start it again" in cancelled
            process = start(folder)
        time.sleep(1)
    assert all(job.state in OVER for job in slurm_jobs(folder) if job.number in before)
    cancelled += (folder / "snakemake.log").read_text()
    assert "orphaned SLURM jobs of an earlier run" in cancelled

    # SLURM requeues the jobs of a lost node.
    until(900, "the training", lambda: is_running(folder, "train"))
    training = next(job.number for job in slurm_jobs(folder) if job.rule == "train" and job.state == "RUNNING")
    with lost_node():
        until(30, "the training is gone", lambda: not is_running(folder, "train"))
    # Wait until SLURM has dropped the revoked credential of the job on that node.
    time.sleep(10)
    subprocess.run(["scontrol", "update", f"jobid={training}", "starttime=now"], check=False)

    finish(process, folder)
    metrics = Path("results", "evaluation", "inception_v3", "metrics.json")
    assert (folder / metrics).read_bytes() == (finished / metrics).read_bytes()
    assert (folder / "results" / "report.html").is_file()
    jobs = [job for job in slurm_jobs(folder) if job.state == "COMPLETED"]
    assert {job.partition for job in jobs if job.gres == "gres:gpu:1"} == {"gpu"}
    assert Counter(job.rule for job in jobs if job.partition == "gpu") == GPU_JOBS
    assert {job.gres for job in jobs if job.partition == "cpu"} == {"N/A"}
    # The steps of a slide run one after the other, and request no more than the largest of them needs.
    assert {(job.cores, job.memory) for job in jobs if job.rule.startswith("slide")} == {("1", "2400M")}


def test_a_job_over_its_memory_limit_is_retried_with_more(folder: Path) -> None:
    receipt = "results/slides/tumor-1/pyramid.json"
    finish(start(folder, "--set-resources", "convert:mem_mb=60 * 2**attempt", "--retries", "3", "--", receipt), folder)
    assert (folder / receipt).is_file()
    *killed, good = slurm_jobs(folder)
    assert killed
    assert [(job.state, job.memory) for job in killed] == [("FAILED", f"{120 * 2**n}M") for n in range(len(killed))]
    assert (good.state, good.memory) == ("COMPLETED", f"{120 * 2 ** len(killed)}M")
    (log,) = (folder / ".snakemake" / "slurm_logs").rglob(f"{killed[0].number}.log")
    assert "exceeded memory limit" in log.read_text()


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync, which Snakemake copies with")
def test_jobs_work_in_node_scratch_and_copy_their_outputs(finished: Path, folder: Path) -> None:
    scratch = ["--default-storage-provider", "fs", "--default-storage-prefix", str(folder)]
    scratch += ["--local-storage-prefix", str(folder / "login")]
    scratch += ["--remote-job-local-storage-prefix", f"{folder}/node-$SLURM_JOB_ID"]
    scratch += ["--shared-fs-usage", "persistence", "software-deployment", "sources", "source-cache"]
    # The profile groups the steps of a slide into one job, which Snakemake cannot plan with a scratch folder.
    scratch += ["--groups", *(f"{rule}={rule}" for rule in ("convert", "tissue", "truth", "patches"))]
    finish(start(folder, *scratch), folder)
    for name in ("evaluation/inception_v3/metrics.json", "slides/tumor-3/pyramid.json", "report/tumor-3.html"):
        assert (folder / "results" / name).read_bytes() == (finished / "results" / name).read_bytes(), name
    jobs = {job.number for job in slurm_jobs(folder)}
    assert {path.name.removeprefix("node-") for path in folder.glob("node-*")} == jobs
    assert "Nothing to be done" in finish(start(folder, *scratch, "--dry-run"), folder)


@pytest.mark.nightly
def test_training_over_its_time_limit_resumes_in_the_next_attempt(finished: Path, folder: Path) -> None:
    for name in ("results", ".snakemake"):
        shutil.copytree(finished / name, folder / name, copy_function=shutil.copy2, symlinks=True)
    longer = CONFIG | {"training": CONFIG["training"] | {"max_steps": STEPS, "validate_every": STEPS, "epochs": STEPS}}
    model = "results/model/inception_v3/model.json"
    finish(start(folder, "--set-resources", "train:runtime=1", "--retries", "8", "--", model, config=longer), folder)
    stopped, *_, good = slurm_jobs(folder)
    assert (stopped.rule, stopped.state) == ("train", "TIMEOUT")
    assert (good.rule, good.state) == ("train", "COMPLETED")
    # The log is that of the last attempt.
    resumed = re.search(r"resuming from step (\d+)", (folder / "results/logs/train/inception_v3.log").read_text())
    assert resumed
    assert 1 <= int(resumed[1]) < STEPS
    assert json.loads((folder / model).read_text())["steps"] == STEPS
