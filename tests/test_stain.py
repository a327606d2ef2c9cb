"""Macenko normalisation: recovery of mixed stains, and slides of different colours made alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from helpers.paths import DATA, needs_data
from helpers.slides import converted, write_tiff
from wsi_pipeline.config import HeatmapRun, PatchesRun, TissueRun, TruthRun
from wsi_pipeline.geometry import PatchSpec
from wsi_pipeline.model.augment import to_input, to_unit
from wsi_pipeline.model.inception import InceptionV3, initialize
from wsi_pipeline.model.model_dir import ModelMetadata, save_weights, write_model_json
from wsi_pipeline.pyramid.ome_zarr import Image, read_image
from wsi_pipeline.pyramid.patch_store import PatchStore
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.pyramid.stain import REFERENCE, REFERENCE_MAXIMA, Stains, fit_stains
from wsi_pipeline.seeds import generator
from wsi_pipeline.stages import heatmap, patches, tissue, truth

PALE = np.array([[0.60, 0.72, 0.35], [0.10, 0.95, 0.30]])
STRONG = np.array([[0.50, 0.75, 0.43], [0.28, 0.80, 0.53]])


def mixed(vectors: np.ndarray, scale: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Pixels mixed from two stains, and the concentrations; some pixels have almost none of one stain."""
    rng = np.random.default_rng(1)
    amounts = rng.gamma(2.0, 0.35, (count, 2)) * (rng.random((count, 2)) < 0.8) * scale
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.clip(np.rint(240 * np.exp(-amounts @ unit) - 1), 0, 255).astype(np.uint8), amounts


@pytest.mark.parametrize("vectors", [PALE, STRONG])
def test_the_fit_recovers_the_mixed_stains(vectors: np.ndarray) -> None:
    pixels, amounts = mixed(vectors, 1.0)
    found = Stains.fit(pixels)
    assert found is not None
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # Within 4 degrees, as the directions are percentiles of angles.
    assert ((found.vectors * unit).sum(axis=1) > np.cos(np.radians(4))).all()
    np.testing.assert_allclose(found.maxima, np.percentile(amounts, 99, axis=0), rtol=0.15)


def test_normalised_slides_are_alike() -> None:
    slides = [mixed(PALE, 0.7)[0], mixed(STRONG, 1.1)[0]]
    before = np.abs(slides[0].astype(int) - slides[1]).mean()
    normalised = [Stains.fit(pixels).normalize(pixels) for pixels in slides]
    assert np.abs(normalised[0].astype(int) - normalised[1]).mean() < before / 5
    again = Stains.fit(normalised[0])
    reference = REFERENCE / np.linalg.norm(REFERENCE, axis=1, keepdims=True)
    assert ((again.vectors * reference).sum(axis=1) > np.cos(np.radians(4))).all()
    np.testing.assert_allclose(again.maxima, REFERENCE_MAXIMA * np.linalg.norm(REFERENCE, axis=1), rtol=0.1)


def test_glass_and_grey_have_no_stains() -> None:
    assert Stains.fit(np.full((5000, 3), 240, np.uint8)) is None
    assert Stains.fit(np.full((5000, 3), 90, np.uint8)) is None
    assert Stains.fit(mixed(PALE, 1.0, 500)[0]) is None


@pytest.fixture(scope="module")
def stained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder of a slide with two stains, with its tissue and truth."""
    folder = tmp_path_factory.mktemp("stained")
    pixels, _ = mixed(PALE, 1.0, 1200 * 1000)
    # Blocks of 4 px, so that JPEG does not blur them.
    grains = pixels.reshape(1000, 1200, 3)[:250, :300].repeat(4, axis=0).repeat(4, axis=1)
    out = converted(folder, write_tiff(folder / "s1.tif", grains, compression="deflate"))
    pyramid = out / "pyramid.ome.zarr"
    made = tissue.Outputs(out / "tissue.ome.zarr", out / "tissue.json", out / "t.png")
    tissue.run("s1", tissue.Inputs(pyramid), made, TissueRun())
    truth.run(
        "s1",
        truth.Inputs(pyramid),
        truth.Outputs(
            store=out / "truth.ome.zarr", receipt=out / "truth.json", picture=out / "u.png", geojson=out / "u.geojson"
        ),
        TruthRun(),
        label="normal",
    )
    return out


def draw(stained: Path, out: Path, kind: str) -> tuple[dict[str, Any], PatchStore]:
    options = PatchesRun(mpp=0.5, size_px=75, max_normal=20, min_tissue=0.1, codec="zstd", stain_normalisation=kind)
    patches.run(
        "s1",
        patches.Inputs(*(stained / f"{kind}.ome.zarr" for kind in ("pyramid", "tissue", "truth"))),
        patches.Outputs(*(out / f"patches.{kind}" for kind in ("zarr", "parquet", "json"))),
        options,
    )
    return json.loads((out / "patches.json").read_text()), PatchStore(out / "patches.zarr")


@pytest.mark.slow
def test_patches_and_heatmap_use_the_same_normalisation(stained: Path, tmp_path: Path) -> None:
    plain, raw = draw(stained, tmp_path / "a", "none")
    facts, normalised = draw(stained, tmp_path / "b", "macenko")
    assert plain["stains"] is None
    stains = Stains(np.array(facts["stains"]["vectors"]), np.array(facts["stains"]["maxima"]))
    unit = PALE / np.linalg.norm(PALE, axis=1, keepdims=True)
    assert ((stains.vectors * unit).sum(axis=1) > np.cos(np.radians(6))).all()
    for number in range(len(raw)):
        difference = stains.normalize(raw.read(number)).astype(int) - normalised.read(number)
        assert np.abs(difference).max() <= 1
    network = InceptionV3(2)
    initialize(network, 3)
    folder = tmp_path / "model"
    digest = save_weights(folder / "weights.safetensors", network.state_dict())
    write_model_json(folder / "model.json", ModelMetadata(75, 0.5, ("normal", "tumor"), digest, "macenko"))
    inputs = heatmap.Inputs(slides=stained.parent, weights=folder / "weights.safetensors", model=folder / "model.json")
    heatmap.run(stained.name, inputs, heatmap.Outputs(tmp_path), HeatmapRun())
    assert json.loads((tmp_path / f"{stained.name}.json").read_text())["stains"] == facts["stains"]
    heat = read_image(tmp_path / f"{stained.name}.ome.zarr", 0.5).data
    row = pq.read_table(tmp_path / "b" / "patches.parquet").to_pylist()[0]
    with torch.inference_mode():
        x = to_input(to_unit(normalised.read(0)[None].copy(), torch.device("cpu")))
        wanted = network.eval()(x).softmax(1)[0, 1].item()
    assert heat[row["y"] // 75, row["x"] // 75] == pytest.approx(wanted, abs=1e-3)


@needs_data
def test_a_real_slide_has_two_stains(tmp_path: Path) -> None:
    out = converted(tmp_path, DATA / "slides" / "CMU-1-Small-Region.svs")
    pyramid = Pyramid(out / "pyramid.ome.zarr")
    size = pyramid.size_at(8.0)
    found = fit_stains("s1", pyramid, Image.from_corner(np.ones((size.height, size.width), np.uint8), 8.0))
    assert found is not None
    # Haematoxylin absorbs mostly red light, eosin green.
    assert found.vectors[0][0] > found.vectors[1][0] + 0.1
    assert found.vectors[1][1] > 0.7
    assert (found.maxima > 0.5).all()


def test_samples_are_drawn_from_all_pixels_of_tissue(tmp_path: Path) -> None:
    """The positions are those of the same draw from the coordinates of all pixels."""
    rng = np.random.default_rng(1)
    tissue = Image.from_corner((rng.uniform(size=(700, 90)) < 0.3).astype(np.uint8), 8.0)
    asked = list[tuple[list[int], list[int]]]()

    class Asked:
        mpp = 0.5

        def patch_spec(self, size_px: int, mpp: float) -> PatchSpec:
            return PatchSpec(size_px, mpp, 0, size_px, size_px * 2.0, size_px * mpp, 1.0)

        def read_patches(self, x: list[int], y: list[int], _: PatchSpec) -> np.ndarray:
            asked.append((x, y))
            return np.full((len(x), 8, 8, 3), 255, np.uint8)

    assert fit_stains("s1", cast("Pyramid", Asked()), tissue) is None
    rows, columns = np.nonzero(tissue.data)
    chosen = np.sort(generator(0, "stain", "s1").choice(len(rows), 32, replace=False))
    wanted = [np.rint((at[chosen] + 0.5) * 16 - 224).astype(int).tolist() for at in (columns, rows)]
    assert asked == [tuple(wanted)]
    assert fit_stains("s1", cast("Pyramid", Asked()), Image.from_corner(np.zeros((5, 5), np.uint8), 8.0)) is None
