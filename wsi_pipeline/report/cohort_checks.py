"""Outliers and damage among the slides of a cohort, from the receipts of their stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from wsi_pipeline.receipts.base import Receipt, read_receipt
from wsi_pipeline.receipts.slides import ConvertReceipt, PatchesReceipt, TissueReceipt

# Modified z-score: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers, ASQC 1993.
_MOST_Z, _NORMAL_MAD = 3.5, 0.6745
_LEAST_SLIDES = 8
# Least spread (log factor): near-identical slides would otherwise make small differences outliers.
_LEAST_SPREAD = np.log(1.1)
_MENTIONED_PEN = 0.01

R = TypeVar("R", bound=Receipt)


def receipts_of(slides_folder: Path, slides: Sequence[str], name: str, model: type[R]) -> dict[str, R]:
    """The receipts in the files `name` of those slides that have one."""
    paths = {slide: slides_folder / slide / name for slide in slides}
    return {slide: read_receipt(path, model) for slide, path in paths.items() if path.is_file()}


def findings(slides_folder: Path, slides: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (slide, remark) of the slides that need a look, in the order of `slides`."""
    found = list[tuple[str, str]]()
    tissue = receipts_of(slides_folder, slides, "tissue.json", TissueReceipt)
    for slide, factor in outliers({slide: facts.tissue_mm2 for slide, facts in tissue.items()}).items():
        times = f"{factor:.3g} times" if factor > 1 else f"1/{1 / factor:.3g} of"
        found.append((slide, f"{tissue[slide].tissue_mm2:.3g} mm² of tissue, {times} the cohort's median"))
    for slide, facts in tissue.items():
        share = facts.pen_pixels / (facts.shape[0] * facts.shape[1])
        if share > _MENTIONED_PEN:
            found.append((slide, f"{100 * share:.0f} % of the slide were taken for pen marks"))
        if facts.replaced_otsu is not None:
            how = (
                f"threshold {facts.threshold:g} instead of Otsu's {facts.replaced_otsu:g}, which splits tissue or glass"
            )
            found.append((slide, f"{how}; the sheet's column tissue_threshold overrides it"))
    for slide, receipt in receipts_of(slides_folder, slides, "pyramid.json", ConvertReceipt).items():
        damaged = sum(len(level.damaged_tiles) for level in receipt.levels)
        if damaged:
            found.append((slide, f"{damaged} damaged tiles are white"))
    order = {slide: number for number, slide in enumerate(slides)}
    return sorted(found, key=lambda one: order[one[0]])


def outliers(values: Mapping[str, float]) -> dict[str, float]:
    """Values whose modified z-score of the logarithm exceeds 3.5, as factors of the median.

    Empty for fewer than 8 values.
    """
    if len(values) < _LEAST_SLIDES:
        return {}
    logs = np.log(np.maximum(np.array(list(values.values())), np.finfo(float).tiny))
    away = logs - np.median(logs)
    spread = max(float(np.median(np.abs(away))) / _NORMAL_MAD, float(_LEAST_SPREAD))
    return {name: float(np.exp(a)) for name, a in zip(values, away, strict=True) if abs(a) / spread > _MOST_Z}


def patch_counts(slides_folder: Path, slides: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows of text: a header, candidates and drawn patches of each class by slide, and their sum; none for no slide."""
    receipts = receipts_of(slides_folder, slides, "patches.json", PatchesReceipt)
    rows = [
        (slide, [r.candidates.normal, r.drawn.normal, r.candidates.tumor, r.drawn.tumor])
        for slide, r in receipts.items()
    ]
    if not rows:
        return []
    head = ("slide", "normal candidates", "normal drawn", "tumour candidates", "tumour drawn")
    total = np.sum([counts for _, counts in rows], axis=0).tolist()
    return [head, *((name, *(f"{count:,}" for count in counts)) for name, counts in [*rows, ("all", total)])]
