from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tissue_picture, write_tiff

from wsi_pipeline.config import HeatmapOptions, PyramidOptions, TissueOptions
from wsi_pipeline.errors import ModelError, StoreError
from wsi_pipeline.masks import grid_shares
from wsi_pipeline.model.augment import to_input, to_unit
from wsi_pipeline.model.folder import ModelFacts, load_network, save_weights, write_model_json
from wsi_pipeline.model.inception import InceptionV3, initialize
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.stages import convert, heatmap, tissue
from wsi_pipeline.store import read_image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights for 75 px at 1 um per pixel."""
    folder = tmp_path_factory.mktemp("model")
    network = InceptionV3(2)
    initialize(network, 3)
    torch.nn.init.normal_(network.fc.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    digest = save_weights(folder / "weights.safetensors", network.state_dict())
    write_model_json(folder / "model.json", ModelFacts(75, 1.0, ("normal", "tumor"), digest))
    return folder


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slide")
    source = write_tiff(folder / "s.tif", tissue_picture(1300, 1000))
    options = PyramidOptions(chunk_px=256, shard_px=512)
    convert.run("s1", source, folder / "pyramid.ome.zarr", folder / "pyramid.json", options)
    tissue.run(
        "s1", folder / "pyramid.ome.zarr", folder / "tissue.ome.zarr", folder / "tissue.json", folder / "t.png",
        TissueOptions(), 1,
    )  # fmt: skip
    return folder


def run(slide: Path, model: Path, out: Path, threads: int = 2, **options: object) -> np.ndarray:
    heatmap.run(
        "s1", slide / "pyramid.ome.zarr", slide / "tissue.ome.zarr", model / "weights.safetensors",
        model / "model.json", out / "h.ome.zarr", out / "h.json", HeatmapOptions(cpu_threads=1, **options), threads,
    )  # fmt: skip
    return read_image(out / "h.ome.zarr", 0.5).data


def test_each_pixel_is_the_probability_of_its_patch(slide: Path, model: Path, tmp_path: Path) -> None:
    heat = run(slide, model, tmp_path, stride_um=60)
    pyramid = Pyramid(slide / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 1.0)
    grid = pyramid.grid(spec, 60)
    mask = read_image(slide / "tissue.ome.zarr", 0.5)
    wanted = grid_shares(mask.data > 0, mask.mpp, grid, 0.5) > 0
    assert heat.shape == (grid.rows, grid.columns)
    np.testing.assert_array_equal(np.isfinite(heat), wanted)
    network = load_network(model / "weights.safetensors", ModelFacts(75, 1.0, ("normal", "tumor"), ""))
    for row, column in [(2, 3), (4, 7), tuple(np.argwhere(wanted)[-1])]:
        patch = pyramid.read_patch(int(grid.x()[column]), int(grid.y()[row]), spec)
        with torch.inference_mode():
            logits = network(to_input(to_unit(patch[None], torch.device("cpu"))))
        assert heat[row, column] == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-4)
    assert np.nanstd(heat) > 1e-4


def test_values_are_steps_of_16_bits(slide: Path, model: Path, tmp_path: Path) -> None:
    heat = run(slide, model, tmp_path)
    steps = heat[np.isfinite(heat)].astype(np.float64) * 65535
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.01)


def test_batches_and_reading_threads_leave_the_same_map(slide: Path, model: Path, tmp_path: Path) -> None:
    one = run(slide, model, tmp_path / "a", threads=1, batch_size=7)
    two = run(slide, model, tmp_path / "b", threads=3, batch_size=64)
    np.testing.assert_allclose(one, two, atol=2.1 / 65535)
    run(slide, model, tmp_path / "c", threads=4, batch_size=7)
    assert (tmp_path / "a" / "h.json").read_bytes() == (tmp_path / "c" / "h.json").read_bytes()


def test_the_map_lies_on_the_slide(slide: Path, model: Path, tmp_path: Path) -> None:
    run(slide, model, tmp_path, stride_um=60)
    image = read_image(tmp_path / "h.ome.zarr", 0.5)
    assert (image.mpp, image.first_centre_um) == (pytest.approx(60), pytest.approx(37.5))
    facts = json.loads((tmp_path / "h.json").read_text())
    assert facts["model_sha256"] == json.loads((model / "model.json").read_text())["weights_sha256"]


def test_a_slide_without_tissue_gives_an_empty_map(slide: Path, model: Path, tmp_path: Path) -> None:
    from wsi_pipeline.store import Image, write_image

    bare = tmp_path / "bare"
    write_image(bare / "tissue.ome.zarr", Image.from_corner(np.zeros((63, 82), np.uint8), 8), name="t", slide_mpp=0.5)
    (bare / "pyramid.ome.zarr").symlink_to(slide / "pyramid.ome.zarr")
    assert np.isnan(run(bare, model, tmp_path / "none")).all()
    assert json.loads((tmp_path / "none" / "h.json").read_text())["maximum"] is None


def test_weights_of_another_model_json_are_refused(slide: Path, model: Path, tmp_path: Path) -> None:
    write_model_json(tmp_path / "model.json", ModelFacts(75, 1.0, ("normal", "tumor"), "0" * 64))
    (tmp_path / "weights.safetensors").symlink_to(model / "weights.safetensors")
    with pytest.raises(ModelError, match="not the weights that"):
        run(slide, tmp_path, tmp_path / "out")


def test_a_model_finer_than_the_slide_is_refused(slide: Path, model: Path, tmp_path: Path) -> None:
    digest = json.loads((model / "model.json").read_text())["weights_sha256"]
    write_model_json(tmp_path / "model.json", ModelFacts(75, 0.25, ("normal", "tumor"), digest))
    (tmp_path / "weights.safetensors").symlink_to(model / "weights.safetensors")
    with pytest.raises(StoreError, match=r"coarser than the 0\.25 asked for"):
        run(slide, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
