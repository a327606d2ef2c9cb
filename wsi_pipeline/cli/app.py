"""The command line: one subcommand a stage, and those of `tools`.

A `PipelineError` becomes one line and exit code 2; anything else is a bug and keeps its traceback.
Heavy libraries are imported by the stages, inside the commands.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import TextIO

import typer

from wsi_pipeline.cli import tools
from wsi_pipeline.config import STAGES
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.io.atomic import is_out_of_space

app = typer.Typer(
    name="wsi-pipeline",
    help="Train and evaluate tumour classifiers on whole-slide images, stage by stage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Stderr(logging.StreamHandler[TextIO]):
    """Log handler that looks up `sys.stderr` for each record: progress bars replace it while they are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Stderr()])
    # What tifffile cannot read is left to OpenSlide, whose error is the one that helps.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    for library in ("pyvips", "fontTools"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        app()
    except PipelineError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not is_out_of_space(error):
            raise
        print(f"error: {error.filename or 'a file'}: cannot be written ({error.strerror}). Free space", file=sys.stderr)
        sys.exit(2)


for name in STAGES:
    app.command(name)(import_module(f"wsi_pipeline.stages.{name}").command)
app.add_typer(tools.app)
