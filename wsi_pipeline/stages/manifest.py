"""Stage manifest: one file that stands for the receipts of many slides.

A stage that reads the results of all slides depends on its manifest instead of several files a slide: Snakemake
searches all inputs of a job each time that another job asks for one of its outputs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cohort.sheet import Sheet, load_sheet
from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import digest_bytes
from wsi_pipeline.stages.arguments import Exclude, Receipts, Rows, SheetArg

log = logging.getLogger(__name__)

COLUMNS = ("slide", "stage", "sha256")


def command(
    *,
    output: Annotated[Path, typer.Argument(help="Table (TSV) to write.")],
    sheet: SheetArg,
    exclude: Exclude = None,
    rows: Rows = None,
    train: Receipts = None,
    validation: Receipts = None,
    test: Receipts = None,
) -> None:
    """List the receipts of many slides with their checksums in one file."""
    given = {"train": train, "validation": validation, "test": test}
    patterns = {split: of_split for split, of_split in given.items() if of_split}
    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    loaded.check_digest(rows, *patterns)
    run(loaded, patterns, output)


def run(sheet: Sheet, patterns: Mapping[str, Sequence[str]], output: Path) -> None:
    """Write slide, stage and SHA-256 of each receipt to the table `output` (tab-separated), sorted.

    `patterns`: by split, paths of receipts in which `{slide}` stands for the id of each slide of the split.
    The content depends on the receipts' bytes and on nothing else, so that it changes exactly where one of them does.
    Raises `StoreError` where a receipt is missing or damaged.
    """
    rows = sorted(
        (slide, *_stage_and_digest(Path(pattern.replace("{slide}", slide))))
        for split, of_split in patterns.items()
        for slide in sheet.of_split(split)
        for pattern in of_split
    )
    write_text(output, "".join("\t".join(row) + "\n" for row in (COLUMNS, *rows)))
    log.info("%d receipts of %d slides", len(rows), len({slide for slide, *_ in rows}))


def _stage_and_digest(receipt: Path) -> tuple[str, str]:
    try:
        content = receipt.read_bytes()
        stage = json.loads(content)["stage"]
        if not isinstance(stage, str):
            raise ValueError("its stage is no name")
        return stage, digest_bytes(content)
    except FileNotFoundError as error:
        raise StoreError(f"{receipt}: no such receipt", remedy="Run the stage that writes it first") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StoreError(
            f"{receipt}: not a receipt ({error})", remedy="Delete it and run the stage that writes it again"
        ) from error
