"""Planning large cohorts: what Snakemake looks up slowly.

For each file that a job needs, Snakemake asks whether the job that makes the file takes it as input as well, and goes
through the inputs one by one. The training has three inputs a slide, and each heatmap asks twice: with 10,000 slides
that is a quarter of the time of a plan. And Python looks again and again for cycles among objects of which hardly any
ever goes away: a seventh of the rest.
"""

from __future__ import annotations

import gc
from typing import Any

from snakemake.iocontainers import InputFiles

# Below this, building the index costs more than it saves.
_FEW = 64
# New objects before a look for cycles among them, such looks before one at older objects, and those before one at all.
_COLLECT_AFTER = (50_000, 20, 100)


def _contains(files: InputFiles, file: Any) -> bool:
    if len(files) < _FEW:
        return list.__contains__(files, file)
    index = files.__dict__.get("_index")
    # Snakemake may add to the inputs of a job, but never exchanges one for another.
    if index is None or index[0] != len(files):
        index = files.__dict__["_index"] = len(files), frozenset(files)
    return file in index[1]


def index_inputs() -> None:
    """Let `file in job.input` take the same time for any number of inputs; the answers stay what they are."""
    if "__contains__" not in vars(InputFiles):
        InputFiles.__contains__ = _contains


def collect_rarely() -> None:
    """Let Python look for cycles less often, and never among what is there already."""
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
