"""Receipts: small JSON files beside each output that say what is in it.

A receipt holds facts about content only (counts, sizes, digests, options, `step_version`): no times,
no paths and no host names, so that a rebuild with the same content gives the same bytes and reruns
nothing downstream.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wsi_pipeline.config import STAGES, Section
from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import canonical_json

Facts = dict[str, Any]


def write_receipt(path: Path, stage: str, facts: Facts, options: Section | None = None) -> None:
    """Write the receipt of `stage`; call it last, when the outputs are in place."""
    content: Facts = {"stage": stage, "step_version": STAGES[stage].step_version, **facts}
    if options is not None:
        content["options"] = options.model_dump(mode="json")
    write_text(path, canonical_json(content))


def read_receipt(path: Path, stage: str) -> Facts:
    """The receipt that `stage` wrote; `StoreError` where it is missing, damaged or another's."""
    try:
        content: Facts = json.loads(path.read_text(encoding="utf-8"))
        found = content["stage"]
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such receipt", remedy=f"Run the stage {stage} first") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StoreError(
            f"{path}: not a receipt ({error})", remedy=f"Delete it and run the stage {stage} again"
        ) from error
    if found != stage:
        raise StoreError(
            f"{path}: a receipt of the stage {found}, not of {stage}",
            remedy="Check the order of the arguments",
        )
    return content
