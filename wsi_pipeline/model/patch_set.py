"""Sets of patches of several slides, by the receipts of the stages that drew them, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import CLASSES
from wsi_pipeline.errors import PipelineError, StoreError
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.slides import ClassCounts, NegativesReceipt, PatchesReceipt, PatchStoreReceipt


@dataclass(frozen=True, slots=True)
class PatchSet:
    """Receipts of the stages patches and negatives; the store and the index of each lie beside it."""

    receipts: Sequence[Path]

    @property
    def stores(self) -> list[Path]:
        return [path.with_suffix(".zarr") for path in self.receipts]

    @property
    def indices(self) -> list[Path]:
        return [path.with_suffix(".parquet") for path in self.receipts]


def read_patch_receipt(path: Path) -> PatchStoreReceipt:
    """A receipt of the stage patches, which is always named patches.json, or else of the stage negatives."""
    if path.name == "patches.json":
        return read_receipt(path, PatchesReceipt)
    return read_receipt(path, NegativesReceipt)


def check_stores(patches: PatchSet) -> None:
    """Raise `StoreError` where a store or an index is missing beside its receipt.

    The workflow depends on receipts, so it makes a lost store again only after its receipt is gone too.
    """
    for receipt, store, index in zip(patches.receipts, patches.stores, patches.indices, strict=True):
        for path in (store, index):
            if not path.exists():
                raise StoreError(
                    f"{path}: missing, although its receipt is there",
                    remedy=f"Delete {receipt} and run Snakemake again",
                )


def check_same_format(receipts: Sequence[PatchStoreReceipt]) -> None:
    """Raise `PipelineError` where patches differ in size, border, scale or stains, naming two slides."""
    for one, other in pairwise(receipts):
        if _format(one) != _format(other):
            raise PipelineError(
                f"patches of {other.slide} and {one.slide} differ in size, border, scale or stains",
                remedy="Run the stage patches again for all slides",
            )


def _format(receipt: PatchStoreReceipt) -> tuple[int, int, float, str]:
    return receipt.size_px, receipt.border_px, receipt.options.mpp, receipt.options.stain_normalisation


def class_counts(labels: NDArray[np.integer[Any]]) -> ClassCounts:
    """Number of patches of each class; a label is an index in `CLASSES`."""
    return ClassCounts(**{name: int((labels == label).sum()) for label, name in enumerate(CLASSES)})


def check_both_classes(counts: ClassCounts) -> None:
    """Raise `PipelineError` where the training patches lack a class."""
    for name in CLASSES:
        if getattr(counts, name) == 0:
            raise PipelineError(
                f"the training slides have no {name} patches",
                remedy="Lower patches.min_tissue or patches.min_tumor, or check the masks and annotations",
            )
