"""Run records: one JSON file in `<results>/logs/runs` per call of Snakemake that ran jobs.

A record holds command, config, slide sheet, package versions and machine. `wsi-pipeline provenance`, the viewer and
the check of the clock read them.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from wsi_pipeline import __version__
from wsi_pipeline.cohort.tables import table_text
from wsi_pipeline.config import Config
from wsi_pipeline.errors import ConfigError, StoreError
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import canonical_json, digest_tree
from wsi_pipeline.provenance.versions import git_commit, package_versions

RunRecord = dict[str, Any]

# Tolerated difference between the clocks of two login nodes.
_CLOCK_TOLERANCE = timedelta(minutes=5)


def record_run(results: Path, config: Config, workflow: Path, slurm_jobs: str | None = None) -> Path:
    """Write the record of a call of Snakemake that is about to run jobs, and return its path.

    `workflow` is the folder of the Snakefile, `slurm_jobs` the name of the run's jobs in SLURM. Raises `StoreError`
    if the results folder is not writable.
    """
    started = datetime.now(UTC)
    sheet = Path(config.cohort.slides)
    content: RunRecord = {
        "command": shlex.join(["snakemake", *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "started": started.isoformat(timespec="milliseconds"),
        "config": config.model_dump(mode="json"),
        "sheet": {"path": str(sheet), "text": table_text(sheet)},
        "workflow": str(workflow),
        "workflow_sha256": digest_tree(workflow),
        "wsi_pipeline": __version__,
        "commit": git_commit(),
        "versions": package_versions(),
        "process": {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()},
        "slurm_jobs": slurm_jobs,
        "machine": {"system": platform.platform(), "processor": platform.machine()},
    }
    path = results / "logs" / "runs" / f"{started:%Y%m%dT%H%M%S.%fZ}.json"
    try:
        write_text(path, canonical_json(content))
    except OSError as error:
        raise StoreError(
            f"{results}: the results cannot be written ({error.strerror})",
            remedy="Make the folder writable, or name another one in the config's `results`",
        ) from error
    return path


def read_runs(results: Path) -> list[RunRecord]:
    """All records of a results folder, oldest first. Raises `StoreError` for a damaged one."""
    return [_read_run(path) for path in sorted((results / "logs" / "runs").glob("*.json"))]


def last_run(results: Path) -> RunRecord | None:
    """The latest record of a results folder, or None. Raises `StoreError` if it is damaged."""
    paths = sorted((results / "logs" / "runs").glob("*.json"))
    return _read_run(paths[-1]) if paths else None


def _read_run(path: Path) -> RunRecord:
    try:
        record: RunRecord = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a run record ({error})", remedy="Delete it") from error
    return record


def check_clock(runs: Sequence[RunRecord]) -> None:
    """Raise `ConfigError` if an earlier run started in the future.

    Snakemake compares modification times: with a clock that was set back, new outputs would look older than their
    inputs and be made again.
    """
    now = datetime.now(UTC)
    for run in runs:
        began = datetime.fromisoformat(run["started"])
        if began > now + _CLOCK_TOLERANCE:
            raise ConfigError(
                f"the clock of {platform.node()} says {now:%Y-%m-%d %H:%M}, but a run of these results began on "
                f"{began:%Y-%m-%d %H:%M} (UTC, on {run.get('process', {}).get('host', 'another machine')})",
                remedy="Set the clock, as Snakemake compares the times of files; or delete that record in logs/runs",
            )
