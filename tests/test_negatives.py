"""Hard negatives: normal patches with high scores, and training that continues with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import logit

from helpers import training
from helpers.annotations import square, write_asap
from helpers.receipts import write_heatmap_receipt
from wsi_pipeline.config import NegativesRun, TissueRun, TruthRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.model.patch_selection import highest_scores
from wsi_pipeline.pyramid.heatmap_store import write_heatmap
from wsi_pipeline.pyramid.ome_zarr import Image
from wsi_pipeline.pyramid.patch_store import PatchStore
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import negatives, tissue, train, truth
from wsi_pipeline.stages.train import Inputs, Outputs

STRIDE_UM = 37.5


@pytest.fixture(scope="module")
def predicted(tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue, truth with tumour on the left, and a heatmap whose value is the column's share of the width."""
    out = tmp_path_factory.mktemp("predicted")
    store = tissue_slide / "pyramid.ome.zarr"
    xml = write_asap(out / "a.xml", [("_0", square(200, 200, 500))])
    made = tissue.Outputs(out / "tissue.ome.zarr", out / "tissue.json", out / "t.png")
    tissue.run("s1", tissue.Inputs(store), made, TissueRun())
    truth.run(
        "s1",
        truth.Inputs(store, xml),
        truth.Outputs(
            store=out / "truth.ome.zarr", receipt=out / "truth.json", picture=out / "u.png", geojson=out / "u.geojson"
        ),
        TruthRun(),
        label="tumor",
    )
    pyramid = Pyramid(store)
    grid = pyramid.grid(pyramid.patch_spec(75, 0.5), None)
    heat = np.tile(np.linspace(0, 1, grid.columns, dtype=np.float32), (grid.rows, 1))
    heat[-2:] = np.nan
    image = Image(logit(heat).clip(-20, 20), STRIDE_UM, STRIDE_UM / 2)
    write_heatmap(out / "heat.ome.zarr", image, np.ones_like(heat), 0.5)
    write_heatmap_receipt(out / "heat.json", "s1", grid, model="m")
    return out


def run(predicted: Path, slide: Path, out: Path, name: str = "s1", **options: Any) -> dict[str, Any]:
    given = {"mpp": 0.5, "size_px": 75, "codec": "zstd", "min_tissue": 0.9, **options}
    negatives.run(
        name,
        negatives.Inputs(
            pyramid=slide / "pyramid.ome.zarr",
            tissue=predicted / "tissue.ome.zarr",
            truth=predicted / "truth.ome.zarr",
            heatmap=predicted / "heat.ome.zarr",
            heatmap_receipt=predicted / "heat.json",
        ),
        negatives.Outputs(out / "s1.zarr", out / "s1.parquet", out / "s1.json"),
        NegativesRun(**given),
    )
    facts: dict[str, Any] = json.loads((out / "s1.json").read_text())
    return facts


def test_the_highest_scoring_normal_patches_are_stored(predicted: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts = run(predicted, tissue_slide, tmp_path, per_slide=12, min_score=0.6)
    rows = pq.read_table(tmp_path / "s1.parquet").to_pylist()
    assert facts["drawn"] == {"normal": 12, "tumor": 0}
    assert facts["candidates"]["normal"] > 12
    assert {row["drawn_as"] for row in rows} == {"hard normal"}
    assert all(row["label"] == 0 and row["tumor_fraction"] == 0 for row in rows)
    # Tissue ends at x = 1400: the columns from 1275 (17 of 0 to 21) down are the highest, 9 positions of tissue each.
    columns = sorted({row["x"] // 75 for row in rows}, reverse=True)
    assert columns[0] == 17
    assert len(columns) == 2
    store, pyramid = PatchStore(tmp_path / "s1.zarr"), Pyramid(tissue_slide / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 0.5)
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(store.read(number), pyramid.read_patch(row["x"], row["y"], spec))


def test_tumour_is_never_a_negative(predicted: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts = run(predicted, tissue_slide, tmp_path, min_score=0.0)
    rows = pq.read_table(tmp_path / "s1.parquet").to_pylist()
    assert len(rows) == facts["candidates"]["normal"]
    # The annotation covers x and y from 200 to 700.
    assert not [row for row in rows if 125 < row["x"] < 700 and 125 < row["y"] < 700]


def test_a_good_model_adds_nothing(predicted: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts = run(predicted, tissue_slide, tmp_path, min_score=0.99)
    assert facts["drawn"] == {"normal": 0, "tumor": 0}
    assert len(PatchStore(tmp_path / "s1.zarr")) == 0


def test_a_heatmap_of_another_slide_is_refused(predicted: Path, tissue_slide: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the heatmap of s1, not of s2"):
        run(predicted, tissue_slide, tmp_path, name="s2")


def test_highest_scores_above_a_minimum_are_chosen() -> None:
    scores = np.array([0.2, 0.9, np.nan, 0.7, 0.9, 0.5], np.float32)
    assert highest_scores(scores, 0.5, 3).tolist() == [1, 3, 4]
    assert highest_scores(scores, 0.5, 1).tolist() == [1]
    assert highest_scores(scores, 0.5, 9).tolist() == [1, 3, 4, 5]
    assert highest_scores(scores, 0.95, 9).tolist() == []


@pytest.mark.slow
def test_training_continues_with_hard_negatives(predicted: Path, tissue_slide: Path, tmp_path: Path) -> None:
    hard = tmp_path / "negatives"
    hard.mkdir()
    run(predicted, tissue_slide, hard, per_slide=6)
    drawn = training.write_patches(tmp_path / "t", [0, 1] * 4)
    options = training.OPTIONS.model_copy(update={"max_steps": 1, "validate_every": 1})
    train.run(Inputs(training=(drawn,)), Outputs.of(tmp_path / "m"), options, checkpoints=tmp_path / "c")
    base = tmp_path / "m" / "weights.safetensors"
    both = Inputs(training=(drawn, hard / "s1.json"), go_on_from=base)
    train.run(both, Outputs.of(tmp_path / "m1"), options, checkpoints=tmp_path / "c1")
    facts = training.model_facts(tmp_path / "m1")
    assert facts["training"] == {"slides": 2, "normal": 10, "tumor": 4}
    assert facts["went_on_from"] == training.model_facts(tmp_path / "m")["weights_sha256"]
    assert [one[0] for one in facts["patches_sha256"]] == ["patches", "negatives"]
    # Training continued from the weights of the previous round: one step changes them only a little.
    before, after = load_file(base), load_file(tmp_path / "m1" / "weights.safetensors")
    name = "Mixed_7c.branch1x1.conv.weight"
    assert 0 < torch.abs(after[name] - before[name]).max() < 0.05
