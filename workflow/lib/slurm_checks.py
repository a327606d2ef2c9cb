"""Checks before a run on SLURM: commands, partitions, and jobs that remain from earlier runs."""

from __future__ import annotations

import difflib
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psutil

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.provenance.run_record import RunRecord

log = logging.getLogger(__name__)

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo")
_CANCELLING_S = 60.0


def check_slurm(partitions: Mapping[str, str]) -> None:
    """Check that SLURM's commands are on the PATH and that the partitions of all rules exist.

    `partitions` maps each rule to its partition, or to several separated by commas. Raises `ConfigError`.
    """
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"SLURM's commands are not on the PATH: {', '.join(missing)}",
            remedy="Start on a login node of the cluster, or leave out --profile profiles/slurm to run on this machine",
        )
    known = set(_lines("sinfo", "--noheader", "--format=%R"))
    for rule, names in partitions.items():
        for name in filter(lambda one: one not in known, names.split(",")):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(
                f"rule {rule}: SLURM has no partition {name} ({hint})",
                remedy="Set slurm_partition in profiles/slurm/profile.yaml",
            )


def cancel_leftovers(runs: Iterable[RunRecord]) -> list[str]:
    """Cancel orphaned jobs of earlier runs and return their ids once they have left the queue.

    Jobs are orphaned when Snakemake is killed or loses its connection. They would write to the same files as the jobs
    of the next run. Jobs of a run whose Snakemake is still running on this machine are kept: Snakemake's lock ensures
    that the two runs write to different files. Raises `ConfigError` if the run was started on another machine, where
    its process cannot be checked, and if cancelled jobs are still in the queue after a minute.
    """
    by_name = _own_jobs()
    found: list[str] = []
    for run in runs:
        jobs = by_name.get(str(run.get("slurm_jobs")), [])
        if jobs and run["process"]["host"] != platform.node():
            raise ConfigError(
                f"SLURM has jobs of a run that was started on {run['process']['host']} at {run['started']}",
                remedy=f"Wait for it to end or, if its Snakemake is no longer running: scancel {' '.join(jobs)}",
            )
        if jobs and not _is_running(run["process"]):
            found += jobs
    if not found:
        return []
    log.warning("cancelling %d orphaned SLURM jobs of an earlier run: %s", len(found), " ".join(found))
    _lines("scancel", *found)
    deadline = time.monotonic() + _CANCELLING_S
    while set(found) & {number for numbers in _own_jobs().values() for number in numbers}:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"jobs {' '.join(found)} of an earlier run are still in the queue", remedy="Check them with squeue"
            )
        time.sleep(1)
    return found


def _is_running(process: Mapping[str, Any]) -> bool:
    """Whether a recorded process is alive; compares its start time, as process ids are reused."""
    try:
        known = psutil.Process(process["pid"])
        return bool(known.create_time() == process["started"] and known.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _own_jobs() -> dict[str, list[str]]:
    """Ids of the user's pending and running jobs by job name; all jobs of a run have the same name."""
    found: dict[str, list[str]] = {}
    for line in _lines("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%j"):
        number, name = line.split("|", 1)
        found.setdefault(name, []).append(number)
    return found


def _lines(*command: str) -> list[str]:
    """The non-empty lines that a SLURM command prints; `ConfigError` if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"{command[0]}: {done.stderr.strip()}", remedy="Ask the administrators of the cluster")
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
