"""Writing and reading of receipts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsi_pipeline.config import TissueRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.digests import canonical_json
from wsi_pipeline.receipts.base import read_receipt, write_receipt
from wsi_pipeline.receipts.evaluation import (
    CalibrateReceipt,
    ConfusionReceipt,
    DetectReceipt,
    OperatingPoint,
    ScoresReceipt,
)
from wsi_pipeline.receipts.models import HeatmapReceipt
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


def test_all_options_are_written(tmp_path: Path) -> None:
    write_receipt(tmp_path / "r.json", tissue_receipt())
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["options"] == TissueRun(mpp=3).model_dump(mode="json")
    assert (content["stage"], content["step_version"]) == ("tissue", TissueRun.step_version)


def test_a_receipt_survives_a_round_trip(tmp_path: Path) -> None:
    write_receipt(tmp_path / "r.json", tissue_receipt())
    assert read_receipt(tmp_path / "r.json", TissueReceipt).as_json() == tissue_receipt().as_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "train"}, "a receipt of the stage train, not of tissue"),
        ({"step_version": 0}, "written by step_version 0 of the stage tissue; this is"),
        ({"shape": "wide"}, r"not a receipt of the stage tissue \(shape: "),
        ({"more": 1}, r"not a receipt of the stage tissue \(more: "),
    ],
)
def test_invalid_content_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(tissue_receipt().as_json() | change))
    with pytest.raises(StoreError, match=message):
        read_receipt(tmp_path / "r.json", TissueReceipt)


def test_files_that_are_not_receipts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(StoreError, match=r"r\.json: no such receipt\. Run the stage tissue first"):
        read_receipt(path, TissueReceipt)
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(StoreError, match=r"r\.json: not a receipt"):
            read_receipt(path, TissueReceipt)


def test_evaluation_receipts_survive_a_round_trip_byte_for_byte(scored: Path) -> None:
    models = {
        "heatmaps": HeatmapReceipt,
        "scores": ScoresReceipt,
        "confusion": ConfusionReceipt,
        "detections": DetectReceipt,
    }
    paths = {path: model for folder, model in models.items() for path in (scored / folder).glob("*.json")}
    paths[scored / "calibration.json"] = CalibrateReceipt
    assert len(paths) == 25
    for path, model in paths.items():
        assert canonical_json(read_receipt(path, model).as_json()) == path.read_text()


def test_unset_fields_are_omitted() -> None:
    fixed = OperatingPoint(rule="fixed", threshold=0.5, threshold_log_odds=0, chosen_on="given")
    assert fixed.as_json() == {"rule": "fixed", "threshold": 0.5, "threshold_log_odds": 0.0, "chosen_on": "given"}
    assert OperatingPoint(**fixed.as_json(), aim=None).as_json()["aim"] is None
