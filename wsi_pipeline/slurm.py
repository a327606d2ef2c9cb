"""What to look at before jobs go to SLURM: its commands, its partitions, and jobs that an earlier run left behind."""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from wsi_pipeline.errors import ConfigError

log = logging.getLogger(__name__)

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo")
# How `slurm-jobname-prefix` of profiles/slurm starts the names of the jobs.
PREFIX = "wsi-pipeline_"
_SEPARATOR = "|"
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


def cancel_leftovers(folder: Path) -> list[str]:
    """Cancel the own jobs of a folder that nobody waits for any more, and return their ids when they are gone.

    They are left where Snakemake was killed, or its connection was lost: they would write to the same files as the
    jobs of the next run. The caller holds Snakemake's lock of the folder, so no other run waits for them.
    """
    found = _own_jobs(folder)
    if not found:
        return []
    log.warning("cancelling %d jobs that an earlier run left in SLURM: %s", len(found), " ".join(found))
    _lines("scancel", *found)
    until = time.monotonic() + _CANCELLING_S
    while _own_jobs(folder):
        if time.monotonic() > until:
            raise ConfigError(f"jobs {' '.join(found)} of an earlier run do not end", remedy="Look at them with squeue")
        time.sleep(1)
    return found


def _own_jobs(folder: Path) -> list[str]:
    columns = _SEPARATOR.join(("%i", "%j", "%Z"))
    rows = [
        line.split(_SEPARATOR, 2)
        for line in _lines("squeue", "--noheader", f"--user={os.getuid()}", f"--format={columns}")
    ]
    own = str(folder.resolve())
    return [number for number, name, place in rows if name.startswith(PREFIX) and str(Path(place).resolve()) == own]


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"{command[0]}: {done.stderr.strip()}", remedy="Ask those who run the cluster")
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
