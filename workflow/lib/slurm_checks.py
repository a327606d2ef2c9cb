"""Before jobs go to SLURM: its commands, its partitions, jobs that an earlier run left behind."""

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
    """`ConfigError` where SLURM's commands are not to be had or the partition of a rule does not exist.

    `partitions`: name of the partition by rule; several may be joined by commas.
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
    """Cancel the jobs of earlier runs that nobody waits for any more, and return their ids when they are gone.

    They are left where Snakemake was killed, or its connection was lost: they would write to the same files as the
    jobs of the next run. Those of a run that still goes on here are left alone, as Snakemake's lock sees to it that
    its files are others. Raises `ConfigError` where that cannot be known, because the run was begun on another machine.
    """
    by_name = _own_jobs()
    found: list[str] = []
    for run in runs:
        jobs = by_name.get(str(run.get("slurm_jobs")), [])
        if jobs and run["process"]["host"] != platform.node():
            raise ConfigError(
                f"SLURM has jobs of a run that was begun on {run['process']['host']} on {run['started']}",
                remedy=f"Let it end, or where Snakemake is no longer there: scancel {' '.join(jobs)}",
            )
        if jobs and not _goes_on(run["process"]):
            found += jobs
    if not found:
        return []
    log.warning("cancelling %d jobs that an earlier run left in SLURM: %s", len(found), " ".join(found))
    _lines("scancel", *found)
    until = time.monotonic() + _CANCELLING_S
    while set(found) & {number for numbers in _own_jobs().values() for number in numbers}:
        if time.monotonic() > until:
            raise ConfigError(f"jobs {' '.join(found)} of an earlier run do not end", remedy="Look at them with squeue")
        time.sleep(1)
    return found


def _goes_on(process: Mapping[str, Any]) -> bool:
    try:
        known = psutil.Process(process["pid"])
        return bool(known.create_time() == process["started"] and known.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _own_jobs() -> dict[str, list[str]]:
    """Ids of the user's jobs that are not over, by name; a run's jobs all have one name."""
    found: dict[str, list[str]] = {}
    for line in _lines("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%j"):
        number, name = line.split("|", 1)
        found.setdefault(name, []).append(number)
    return found


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"{command[0]}: {done.stderr.strip()}", remedy="Ask those who run the cluster")
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
