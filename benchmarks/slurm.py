"""SLURM: how long the demo takes through the profile, beside the same jobs without SLURM on the same cores.

    SLURM_TEST_CPUS=2 tests/slurm/cluster.sh up
    python benchmarks/slurm.py [--cores 2] [--rounds 2]

A job that ended is known to Snakemake when it asks SLURM next, and until then nothing that waits for it can start. The
time in which SLURM has no job of the run, pending or running, is such waiting, and is taken out; what is waited for
while another job runs is not. Snakemake asks every 3 s at first, and later the longer nothing ends (the profile's
first question comes after 40 s, which is right for jobs of minutes). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
METRICS = Path("results", "evaluation", "inception_v3", "metrics.json")


def run(folder: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds since the epoch at which a run of the demo began and ended."""
    folder.mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--configfile", str(ROOT / "config" / "demo.yaml"), "--config", "results=results", *arguments]
    began = time.time()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return began, time.time()


def spans(folder: Path) -> list[tuple[float, float]]:
    """When each job of a folder was submitted and ended, in seconds since the epoch."""
    columns = "SubmitTime:.30,EndTime:.30,WorkDir:.300"
    command = ["squeue", "--noheader", "--states=all", f"--Format={columns}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    rows = [line.split() for line in listed.splitlines()]
    return sorted((seconds(submitted), seconds(ended)) for submitted, ended, place in rows if place == str(folder))


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def without_jobs(jobs: Sequence[tuple[float, float]]) -> float:
    """Seconds between the first and the last job in which there was none."""
    total, known = 0.0, jobs[0][1]
    for submitted, ended in jobs:
        total += max(0.0, submitted - known)
        known = max(known, ended)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    cores = arguments.cores
    local = ("--profile", str(ROOT / "profiles" / "default"), "--cores", str(cores), "--quiet", "all")
    slurm = ["--profile", str(ROOT / "profiles" / "slurm"), "--slurm-no-account"]
    slurm += ["--default-resources", "slurm_partition=cpu"]
    slurm += ["--slurm-init-seconds-before-status-checks", "3", "--max-status-checks-per-second", "1"]
    threads = dict.fromkeys(("convert", "tissue", "truth", "patches"), 1) | dict.fromkeys(("train", "heatmap"), cores)
    slurm += ["--set-threads", *(f"{rule}={count}" for rule, count in threads.items())]
    print(
        "| local, s | SLURM, s | jobs | no job in SLURM, s | ratio | ratio without waiting |\n|---|---|---|---|---|---|"
    )
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            began, ended = run(folder / "local", local)
            alone = ended - began
            began, ended = run(folder / "slurm", slurm)
            if (folder / "local" / METRICS).read_bytes() != (folder / "slurm" / METRICS).read_bytes():
                raise SystemExit(f"round {number}: other metrics")
            jobs = spans(folder / "slurm")
            waited = without_jobs(jobs)
            total = ended - began
            print(
                f"| {alone:.0f} | {total:.0f} | {len(jobs)} | {waited:.0f} | {total / alone:.2f} |"
                f" {(total - waited) / alone:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
