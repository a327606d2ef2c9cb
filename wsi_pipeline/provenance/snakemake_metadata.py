"""Reads Snakemake's metadata of finished jobs: one JSON record per output file, in `.snakemake/metadata`.

The name of a record is the URL-safe base64 of the output's path. The format is not part of Snakemake's public API.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A finished job: rule, shell command, start and end (seconds since the epoch), paths as the job was given them."""

    rule: str
    command: str
    started: float
    ended: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def finished_jobs(state: Path) -> Iterator[Job]:
    """All finished jobs with a shell command, by start time, each with all of its outputs.

    `state` is the folder `.snakemake`. Records with the same command belong to one job. Unreadable records are
    logged and skipped.
    """
    found: dict[str, list[tuple[str, Record]]] = {}
    metadata = state / "metadata"
    for path in sorted(metadata.rglob("*")):
        if not path.is_file():
            continue
        # Snakemake splits names that are too long for the file system into folders with a leading @.
        name = "".join(part.removeprefix("@") for part in path.relative_to(metadata).parts)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            output = base64.urlsafe_b64decode(name).decode()
        except (OSError, ValueError) as error:
            log.warning("%s: not read (%s)", path, error)
            continue
        if _finished(record) is not None:
            found.setdefault(record["shellcmd"], []).append((output, record))
    for made in sorted(found.values(), key=lambda made: made[0][1]["starttime"]):
        yield _job(made)


def _finished(record: Record) -> Record | None:
    """`record` if its job has finished and has a shell command."""
    finished = not record.get("incomplete") and record.get("endtime") is not None and record.get("shellcmd")
    return record if finished else None


def _job(made: Sequence[tuple[str, Record]]) -> Job:
    """The job of one or more (output, record)."""
    records = [record for _, record in made]
    return Job(
        rule=records[0]["rule"],
        command=records[0]["shellcmd"],
        started=min(record["starttime"] for record in records),
        ended=max(record["endtime"] for record in records),
        inputs=tuple(records[0]["input"]),
        outputs=tuple(sorted(output for output, _ in made)),
    )


def job_of_output(state: Path, output: str) -> Job | None:
    """The finished job that produced `output`, with `outputs` reduced to that one; None without a record.

    Reads one file, where `finished_jobs` reads all.
    """
    try:
        record = _finished(json.loads(_record_path(state, output).read_text("utf-8")))
    except (OSError, ValueError):
        return None
    return None if record is None else _job([(output, record)])


def has_record(state: Path, output: str) -> bool:
    """Whether Snakemake has a record of `output`."""
    try:
        return any(_record_path(state, path).is_file() for path in {output, os.path.normpath(output)})
    except OSError:
        return False


def _record_path(state: Path, output: str) -> Path:
    metadata = state / "metadata"
    name = base64.urlsafe_b64encode(output.encode()).decode()
    longest = os.pathconf(metadata, "PC_NAME_MAX") - 1
    *folders, last = (name[start : start + longest] for start in range(0, len(name), longest))
    return metadata.joinpath(*(f"@{folder}" for folder in folders), last)
