"""Summaries of finished jobs in Snakemake's log: the last line of the log of each job, local or on a cluster."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

# Longer than any summary line. Whole logs are not read, as those of training are long.
_TAIL_BYTES = 4096


class _Summaries(logging.Filter):
    """Logging filter that accepts all records and logs the summary of each finished job.

    A logger plugin is the supported way to receive Snakemake's events, but users would have to install it as a package
    and name it on the command line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._jobs: dict[int, tuple[str, Path]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        fields: Any = vars(record)
        event = fields.get("event")
        if event == LogEvent.JOB_INFO and fields["log"]:
            self._jobs[fields["jobid"]] = fields["rule_name"], Path(fields["log"][0])
        elif event == LogEvent.JOB_FINISHED and fields["job_id"] in self._jobs:
            rule, log = self._jobs.pop(fields["job_id"])
            summary = last_line(log)
            if summary:
                logger.info(f"{rule}: {summary}")
        return True


def last_line(path: Path) -> str:
    """The last non-blank line of a text file; empty if there is none or the file cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def log_summaries() -> None:
    """Make Snakemake's logger log the summary of each finished job; repeated calls have no effect."""
    if not any(isinstance(one, _Summaries) for one in logger.filters):
        logger.addFilter(_Summaries())
