"""What each finished job has found, in Snakemake's own log: the last line of the job's log, wherever the job ran."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

# Enough for a line; logs of trainings are long.
_END_BYTES = 4096


class _SayFindings(logging.Filter):
    """Sees all records of Snakemake's logger, and lets all of them pass."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs: dict[int, tuple[str, Path]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said: Any = vars(record)
        event = said.get("event")
        if event == LogEvent.JOB_INFO and said["log"]:
            self._jobs[said["jobid"]] = said["rule_name"], Path(said["log"][0])
        elif event == LogEvent.JOB_FINISHED and said["job_id"] in self._jobs:
            rule, log = self._jobs.pop(said["job_id"])
            found = last_line(log)
            if found:
                logger.info(f"{rule}: {found}")
        return True


def last_line(path: Path) -> str:
    """The last line of a text file that is not empty; nothing where there is none, or no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def say_findings() -> None:
    """Let Snakemake say what each job has found when it is finished."""
    if not any(isinstance(one, _SayFindings) for one in logger.filters):
        logger.addFilter(_SayFindings())
