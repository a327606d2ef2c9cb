"""Heatmaps: values, position on the slide, and errors for bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.predicting import heat_of, probability, run, write_model, write_slide, write_slide_without_tissue
from wsi_pipeline.cli.app import app
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import ModelError, StoreError
from wsi_pipeline.geometry import Box, Grid
from wsi_pipeline.masks.label_images import grid_fractions
from wsi_pipeline.model.model_dir import ModelMetadata, write_model_json
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide"), ConvertRun(chunk_px=256, shard_px=512))


def test_each_pixel_is_the_probability_of_its_patch(slide: Path, model: Path, tmp_path: Path) -> None:
    heat = run(slide, model, tmp_path, stride_um=60)
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 1.0)
    grid = pyramid.grid(spec, 60)
    mask = read_image(slide / "s1" / "tissue.ome.zarr", 0.5)
    wanted = grid_fractions(mask.data > 0, mask.mpp, grid, 0.5) > 0
    assert heat.shape == (grid.rows, grid.columns)
    np.testing.assert_array_equal(np.isfinite(heat), wanted)
    for row, column in [(2, 3), (4, 7), tuple(np.argwhere(wanted)[-1])]:
        patch = pyramid.read_patch(int(grid.x()[column]), int(grid.y()[row]), spec)
        assert heat[row, column] == pytest.approx(probability(model, patch), abs=1e-5)
    assert np.nanstd(heat) > 1e-4


def test_a_model_of_three_classes_gives_the_probability_of_tumour(slide: Path, tmp_path: Path) -> None:
    classes = ("normal", "stroma", "tumor")
    write_model(tmp_path, classes)
    heat = run(slide, tmp_path, tmp_path / "out", stride_um=150)
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    row, column = np.argwhere(np.isfinite(heat))[2]
    patch = pyramid.read_patch(int(column * 300), int(row * 300), pyramid.patch_spec(75, 1.0))
    found = [probability(tmp_path, patch, classes, which) for which in classes]
    assert min(abs(found[2] - found[0]), abs(found[2] - found[1])) > 1e-3
    assert heat[row, column] == pytest.approx(found[2], abs=1e-5)


def test_the_map_is_registered_to_the_slide(slide: Path, model: Path, tmp_path: Path) -> None:
    run(slide, model, tmp_path, stride_um=60)
    image = read_image(tmp_path / "s1.ome.zarr", 0.5)
    assert (image.mpp, image.first_centre_um) == (pytest.approx(60), pytest.approx(37.5))
    facts = json.loads((tmp_path / "s1.json").read_text())
    assert facts["model_sha256"] == json.loads((model / "model.json").read_text())["weights_sha256"]
    assert facts["precision"] == {"device": "cpu", "dtype": "float32"}


def test_a_slide_without_tissue_gives_an_empty_map(
    slide: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_slide_without_tissue(slide, tmp_path / "bare", "s1")
    assert np.isnan(run(tmp_path / "bare", model, tmp_path / "none", overlap_mean=True, smoothing_um=9)).all()
    facts = json.loads((tmp_path / "none" / "s1.json").read_text())
    assert (facts["maximum_log_odds"], facts["positions"], facts["precision"]) == (
        None,
        0,
        {"device": "cpu", "dtype": "float32"},
    )
    assert "no position has more than 0 tissue, the map is empty" in caplog.text


def test_weights_of_another_model_json_are_refused(slide: Path, model: Path, tmp_path: Path) -> None:
    write_model_json(tmp_path / "model.json", ModelMetadata(75, 1.0, ("normal", "tumor"), "0" * 64))
    (tmp_path / "weights.safetensors").symlink_to(model / "weights.safetensors")
    with pytest.raises(ModelError, match="not the weights that"):
        run(slide, tmp_path, tmp_path / "out")


def test_a_model_finer_than_the_slide_needs_allow_upsampling(slide: Path, model: Path, tmp_path: Path) -> None:
    digest = json.loads((model / "model.json").read_text())["weights_sha256"]
    write_model_json(tmp_path / "model.json", ModelMetadata(75, 0.25, ("normal", "tumor"), digest))
    (tmp_path / "weights.safetensors").symlink_to(model / "weights.safetensors")
    with pytest.raises(StoreError, match=r"coarser than the requested 0\.25.*--allow-upsampling"):
        run(slide, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command = ["heatmap", "--slides", slide, "--slide", "s1", "--output", tmp_path / "out", "--allow-upsampling"]
    command += ["--weights", tmp_path / "weights.safetensors", "--model", tmp_path / "model.json"]
    result = CliRunner().invoke(app, [*map(str, command), "--options", '{"stride_um": 120}'], catch_exceptions=False)
    assert result.exit_code == 0
    heat = heat_of(tmp_path / "out")
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 0.25, allow_upsampling=True)
    assert spec.read_px == 38
    row, column = np.argwhere(np.isfinite(heat))[5]
    patch = pyramid.read_patch(int(column * 240), int(row * 240), spec)
    assert heat[row, column] == pytest.approx(probability(model, patch), abs=1e-5)


def test_a_slide_a_little_coarser_than_the_model_is_upsampled(slide: Path, model: Path, tmp_path: Path) -> None:
    digest = json.loads((model / "model.json").read_text())["weights_sha256"]
    write_model_json(tmp_path / "model.json", ModelMetadata(75, 0.45, ("normal", "tumor"), digest))
    (tmp_path / "weights.safetensors").symlink_to(model / "weights.safetensors")
    heat = run(slide, tmp_path, tmp_path / "out", stride_um=120)
    facts = json.loads((tmp_path / "out" / "s1.json").read_text())
    assert (facts["patch_mpp"], facts["factor"]) == pytest.approx((0.45, 0.5 / 0.45))
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    for row, column in np.argwhere(np.isfinite(heat))[[0, 5, -1]].tolist():
        # 75 px of a patch are 67.5 px of the slide.
        read = Image.fromarray(pyramid.read(Box(column * 240, row * 240, 68, 68), 0))
        patch = np.asarray(read.resize((75, 75), Image.Resampling.BICUBIC, box=(0, 0, 67.5, 67.5)))
        assert heat[row, column] == pytest.approx(probability(model, patch), abs=1e-5)


@pytest.mark.slow
def test_orientations_are_averaged(slide: Path, model: Path, tmp_path: Path) -> None:
    heat = run(slide, model, tmp_path, orientations=True, stride_um=150)
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    row, column = np.argwhere(np.isfinite(heat))[2]
    patch = pyramid.read_patch(int(column * 300), int(row * 300), pyramid.patch_spec(75, 1.0))
    turns = [np.rot90(side, k) for k in range(4) for side in (patch, patch[:, ::-1])]
    found = [probability(model, turn) for turn in turns]
    assert np.std(found) > 1e-4
    assert heat[row, column] == pytest.approx(np.mean(found), abs=1e-5)


def test_a_damaged_chunk_affects_only_its_own_patches(
    slide: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(slide, model, tmp_path / "a")
    shutil.copytree(slide / "s1", tmp_path / "slides" / "s1")
    level = Pyramid(tmp_path / "slides" / "s1" / "pyramid.ome.zarr").levels[1]
    stream = level.stream(1, 0)
    assert stream is not None
    shard = tmp_path / "slides" / "s1" / "pyramid.ome.zarr" / "1" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    at = content.index(stream)
    content[at : at + 200] = bytes(200)
    shard.write_bytes(content)
    heat = run(tmp_path / "slides", model, tmp_path / "b")
    grid = Grid(**json.loads((tmp_path / "b" / "s1.json").read_text())["grid"])
    # The chunk's columns are 256 to 512 of level 1.
    touches = (grid.x() / 2 + 75 > 256) & (grid.x() / 2 < 512) & (grid.y() / 2 < 256)[:, None]
    np.testing.assert_array_equal(heat, np.where(touches, np.nan, whole))
    lost = int(np.isfinite(whole[touches]).sum())
    assert lost > 0
    assert json.loads((tmp_path / "b" / "s1.json").read_text())["unread_positions"] == lost
    assert "the chunk in column 1, row 0 is damaged" in caplog.text
    assert f"{lost} of {np.isfinite(whole).sum()} patches touch damaged chunks" in caplog.text
    shutil.copy(slide / "s1" / "pyramid.ome.zarr" / "1" / "c" / "0" / "0" / "0", shard)
    np.testing.assert_array_equal(run(tmp_path / "slides", model, tmp_path / "b"), whole)


def test_non_finite_values_are_an_error(slide: Path, tmp_path: Path) -> None:
    write_model(tmp_path, bias=float("nan"))
    with pytest.raises(ModelError, match=r"weights\.safetensors: the network gives values that are not finite"):
        run(slide, tmp_path, tmp_path / "out")


def test_progress_is_logged(slide: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    positions = int(np.isfinite(run(slide, model, tmp_path)).sum())
    assert re.search(
        rf"{positions} of {positions} patches, [\d.]+/s, \d+ % of the time spent reading, 0.0 min left", caplog.text
    )
