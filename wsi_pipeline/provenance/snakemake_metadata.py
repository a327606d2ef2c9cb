"""What Snakemake remembers of finished jobs, in its folder `.snakemake`: a file for each output of a job."""

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
    """What Snakemake knows of a finished job; paths are as the job had them."""

    rule: str
    command: str
    started: float
    ended: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def finished_jobs(state: Path) -> Iterator[Job]:
    """The finished jobs that Snakemake knows of, in order of their start, each with all of its outputs."""
    found: dict[str, list[tuple[str, Record]]] = {}
    metadata = state / "metadata"
    for path in sorted(metadata.rglob("*")):
        if not path.is_file():
            continue
        # Long names are split, each folder marked with @.
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
    """The record of a job that is finished and has a command."""
    known = not record.get("incomplete") and record.get("endtime") is not None and record.get("shellcmd")
    return record if known else None


def _job(made: Sequence[tuple[str, Record]]) -> Job:
    """The job of some outputs and their records."""
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
    """The finished job that made an output, of whose outputs only this one is named; None where it is not known."""
    metadata = state / "metadata"
    name = base64.urlsafe_b64encode(output.encode()).decode()
    try:
        longest = os.pathconf(metadata, "PC_NAME_MAX") - 1
        *folders, last = (name[at : at + longest] for at in range(0, len(name), longest))
        record = _finished(json.loads(metadata.joinpath(*(f"@{one}" for one in folders), last).read_text("utf-8")))
    except (OSError, ValueError):
        return None
    return None if record is None else _job([(output, record)])
