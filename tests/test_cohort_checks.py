from __future__ import annotations

from pathlib import Path

import pytest

from wsi_pipeline.config import ConvertRun, PatchesRun, TissueRun
from wsi_pipeline.receipts.base import write_receipt
from wsi_pipeline.receipts.slides import ClassCounts, ConvertReceipt, LevelFacts, PatchesReceipt, TissueReceipt
from wsi_pipeline.report.cohort_checks import findings, outliers, patch_counts

DIGEST = "0" * 64


def write_slide(
    folder: Path, slide: str, mm2: float, pen: int = 0, damaged: int = 0, otsu: float | None = None
) -> None:
    tissue = TissueReceipt(
        slide=slide,
        threshold=40,
        replaced_otsu=otsu,
        tissue_pixels=100,
        tissue_mm2=mm2,
        tissue_share=0.01,
        pen_pixels=pen,
        shape=(100, 100),
        mask_sha256=DIGEST,
        options=TissueRun(),
    )
    level = LevelFacts(
        width=512,
        height=512,
        method="copied",
        tile=(256, 256),
        tiles=4 - damaged,
        absent_tiles=0,
        damaged_tiles=((0, 0), (1, 0))[:damaged],
    )
    pyramid = ConvertReceipt(
        slide=slide,
        source_sha256=DIGEST,
        source_fingerprint=DIGEST,
        source_quickhash=None,
        vendor="generic-tiff",
        objective_power=None,
        bounds=None,
        scanned_share=1.0,
        mpp=0.5,
        mpp_source="slide",
        levels=(level,),
        store_digest=DIGEST,
        options=ConvertRun(),
    )
    write_receipt(folder / slide / "tissue.json", tissue)
    write_receipt(folder / slide / "pyramid.json", pyramid)


def write_patches(folder: Path, slide: str, tumor: int) -> None:
    receipt = PatchesReceipt(
        slide=slide,
        size_px=299,
        border_px=0,
        mpp=0.25,
        factor=1,
        grid=(100, 100),
        candidates=ClassCounts(normal=2000, tumor=tumor),
        drawn=ClassCounts(normal=1000, tumor=min(tumor, 1000)),
        stains=None,
        store_sha256=DIGEST,
        index_sha256=DIGEST,
        options=PatchesRun(),
    )
    write_receipt(folder / slide / "patches.json", receipt)


def test_findings_name_outliers_pen_marks_and_damaged_tiles(tmp_path: Path) -> None:
    for number, mm2 in enumerate((90, 100, 110, 95, 105, 120, 85, 130)):
        write_slide(tmp_path, f"s{number}", mm2, pen=50 if number else 400, damaged=2 * (number == 3))
    write_slide(tmp_path, "lost", 0.5)
    write_slide(tmp_path, "crop", 100, otsu=54)
    write_slide(tmp_path, "glass", 2000)
    slides = ["glass", *(f"s{k}" for k in range(8)), "lost", "crop", "not-there"]
    assert findings(tmp_path, slides) == [
        ("glass", "2e+03 mm² of tissue, 20 times the cohort's median"),
        ("s0", "4 % of the slide were taken for pen marks"),
        ("s3", "2 damaged tiles are white"),
        ("lost", "0.5 mm² of tissue, 1/200 of the cohort's median"),
        (
            "crop",
            "threshold 40 instead of Otsu's 54, which splits tissue or glass; the sheet's column tissue_threshold "
            "overrides it",
        ),
    ]
    assert findings(tmp_path, ["s1", "s2"]) == []


@pytest.mark.parametrize("value", [1.0, 5000.0])
def test_outliers_need_enough_slides_and_more_than_10_percent_deviation(value: float) -> None:
    same = {f"s{k}": 100.0 for k in range(7)}
    assert list(outliers({**same, "x": value})) == ["x"]
    assert outliers({**same, "x": 109.0}) == {}
    assert outliers({"a": 1.0, "b": 1.0, "x": value}) == {}
    spread = {f"s{k}": 2.0**k for k in range(14)}
    assert outliers({**spread, "x": value}) == {}


def test_patches_are_counted_by_class_and_slide(tmp_path: Path) -> None:
    assert patch_counts(tmp_path, ["a"]) == []
    for slide, tumor in (("a", 0), ("b", 1500)):
        write_patches(tmp_path, slide, tumor)
    assert patch_counts(tmp_path, ["b", "a"]) == [
        ("slide", "normal candidates", "normal drawn", "tumour candidates", "tumour drawn"),
        ("b", "2,000", "1,000", "1,500", "1,000"),
        ("a", "2,000", "1,000", "0", "0"),
        ("all", "4,000", "2,000", "1,500", "1,000"),
    ]
