"""Receipts: what is written, and what is read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsi_pipeline.config import TissueRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.receipts.base import read_receipt, write_receipt
from wsi_pipeline.receipts.slides import TissueReceipt


def tissue_receipt() -> TissueReceipt:
    return TissueReceipt(
        slide="s",
        threshold=7,
        tissue_pixels=1,
        tissue_mm2=0.1,
        tissue_share=0.5,
        pen_pixels=0,
        shape=(1, 2),
        mask_sha256="a",
        options=TissueRun(mpp=3),
    )


def test_options_are_written_whole(tmp_path: Path) -> None:
    write_receipt(tmp_path / "r.json", tissue_receipt())
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["options"] == TissueRun(mpp=3).model_dump(mode="json")
    assert (content["stage"], content["step_version"]) == ("tissue", TissueRun.step_version)


def test_a_receipt_comes_back(tmp_path: Path) -> None:
    write_receipt(tmp_path / "r.json", tissue_receipt())
    assert read_receipt(tmp_path / "r.json", TissueReceipt).as_json() == tissue_receipt().as_json()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stage": "train"}, "a receipt of the stage train, not of tissue"),
        ({"step_version": 0}, "written by step_version 0 of the stage tissue; this is"),
        ({"shape": "wide"}, r"not a receipt of the stage tissue \(shape: "),
        ({"more": 1}, r"not a receipt of the stage tissue \(more: "),
    ],
)
def test_other_content_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(tissue_receipt().as_json() | change))
    with pytest.raises(StoreError, match=said):
        read_receipt(tmp_path / "r.json", TissueReceipt)


def test_missing_and_damaged_receipts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(StoreError, match=r"no such receipt\. Run the stage tissue first"):
        read_receipt(path, TissueReceipt)
    path.write_text("{")
    with pytest.raises(StoreError, match="not a receipt"):
        read_receipt(path, TissueReceipt)
