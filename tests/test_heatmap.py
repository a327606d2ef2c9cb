from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tissue_picture, write_tiff
from training import needs_bfloat16

from wsi_pipeline.config import HeatmapRun, PyramidRun, TissueOptions
from wsi_pipeline.errors import ModelError, StoreError
from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks import grid_shares
from wsi_pipeline.model.augment import to_input, to_unit
from wsi_pipeline.model.folder import ModelFacts, load_network, save_weights, write_model_json
from wsi_pipeline.model.inception import InceptionV3, initialize
from wsi_pipeline.model.prediction import CPU_BATCH, Predictor, fitting
from wsi_pipeline.model.scan import scan_batches, scan_threads
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.raw_scores import RawScores
from wsi_pipeline.stages import convert, heatmap, predict, tissue
from wsi_pipeline.store import Image, read_image, write_image
from wsi_pipeline.walk import Walk


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
    options = PyramidRun(chunk_px=256, shard_px=512)
    own = folder / "s1"
    convert.run("s1", source, own / "pyramid.ome.zarr", own / "pyramid.json", options)
    tissue.run(
        "s1", own / "pyramid.ome.zarr", own / "tissue.ome.zarr", own / "tissue.json", own / "t.png", TissueOptions(), 1,
    )  # fmt: skip
    return folder


def run(slides: Path, model: Path, out: Path, threads: int = 2, **options: Any) -> np.ndarray:
    weights, facts = model / "weights.safetensors", model / "model.json"
    heatmap.run("s1", slides, weights, facts, out, HeatmapRun(**options), threads)
    return read_image(out / "s1.ome.zarr", 0.5).data


def test_each_pixel_is_the_probability_of_its_patch(slide: Path, model: Path, tmp_path: Path) -> None:
    heat = run(slide, model, tmp_path, stride_um=60)
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 1.0)
    grid = pyramid.grid(spec, 60)
    mask = read_image(slide / "s1" / "tissue.ome.zarr", 0.5)
    wanted = grid_shares(mask.data > 0, mask.mpp, grid, 0.5) > 0
    assert heat.shape == (grid.rows, grid.columns)
    np.testing.assert_array_equal(np.isfinite(heat), wanted)
    for row, column in [(2, 3), (4, 7), tuple(np.argwhere(wanted)[-1])]:
        patch = pyramid.read_patch(int(grid.x()[column]), int(grid.y()[row]), spec)
        assert heat[row, column] == pytest.approx(probability(model, patch), abs=1e-5)
    assert np.nanstd(heat) > 1e-4


def probability(
    model: Path, patch: np.ndarray, classes: tuple[str, ...] = ("normal", "tumor"), which: str = "tumor"
) -> float:
    """By the network as it was trained."""
    network = load_network(model / "weights.safetensors", ModelFacts(75, 1.0, classes, ""))
    with torch.inference_mode():
        logits = network(to_input(to_unit(patch[None].copy(), torch.device("cpu"))))
    value: float = logits.softmax(1)[0, classes.index(which)].item()
    return value


def test_a_model_of_three_classes_gives_the_probability_of_tumour(slide: Path, tmp_path: Path) -> None:
    classes = ("normal", "stroma", "tumor")
    network = InceptionV3(3)
    initialize(network, 3)
    torch.nn.init.normal_(network.fc.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    digest = save_weights(tmp_path / "weights.safetensors", network.state_dict())
    write_model_json(tmp_path / "model.json", ModelFacts(75, 1.0, classes, digest))
    heat = run(slide, tmp_path, tmp_path / "out", stride_um=150)
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    row, column = np.argwhere(np.isfinite(heat))[2]
    patch = pyramid.read_patch(int(column * 300), int(row * 300), pyramid.patch_spec(75, 1.0))
    found = [probability(tmp_path, patch, classes, which) for which in classes]
    assert min(abs(found[2] - found[0]), abs(found[2] - found[1])) > 1e-3
    assert heat[row, column] == pytest.approx(found[2], abs=1e-5)


def test_values_are_steps_of_16_bits(slide: Path, model: Path, tmp_path: Path) -> None:
    heat = run(slide, model, tmp_path, overlap_mean=True, stride_um=37.5, smoothing_um=20)
    steps = heat[np.isfinite(heat)].astype(np.float64) * 65535
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.01)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
@pytest.mark.parametrize(("batch_size", "threads"), [(2, 3), (7, 2), (64, 1), (1, 2)])
def test_batches_and_threads_leave_the_same_map(
    slide: Path, model: Path, tmp_path: Path, batch_size: int, threads: int, precision: str
) -> None:
    one = run(slide, model, tmp_path / "a", threads=1, precision=precision)
    two = run(slide, model, tmp_path / "b", threads=threads, batch_size=batch_size, precision=precision)
    np.testing.assert_array_equal(one, two)


@needs_bfloat16
def test_bfloat16_is_near_float32_and_says_how_near(slide: Path, model: Path, tmp_path: Path) -> None:
    exact = run(slide, model, tmp_path, stride_um=40)
    rounded = run(slide, model, tmp_path, stride_um=40, precision="bfloat16")
    facts = json.loads((tmp_path / "s1.json").read_text())["precision"]
    known = np.isfinite(exact)
    np.testing.assert_array_equal(np.isfinite(rounded), known)
    away = np.abs(rounded[known] - exact[known])
    assert (facts["dtype"], facts["patches_compared"]) == ("bfloat16", 64)
    assert 0 < facts["largest_difference"] <= away.max() + 1 / 65535
    assert facts["largest_difference"] > away.max() / 10
    # The last layer is exact: values are no coarser than the map's own steps.
    assert len(np.unique(rounded[known])) > 0.9 * len(np.unique(exact[known]))
    assert away.max() < np.std(exact[known]) / 4


@needs_bfloat16
def test_what_was_predicted_in_other_numbers_is_kept_only_where_none_are_asked_for(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = run(slide, model, tmp_path, precision="bfloat16")
    predicted = count_predicted(monkeypatch)
    np.testing.assert_array_equal(run(slide, model, tmp_path), rounded)
    assert not predicted
    assert (run(slide, model, tmp_path, precision="float32") != rounded).any()
    assert predicted


def test_a_device_without_bfloat16_is_refused(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ModelError, match=r"this CPU does not compute with bfloat16\. Set precision to auto or float32"):
        run(slide, model, tmp_path, precision="bfloat16")
    assert not list(tmp_path.iterdir())


def test_the_way_of_a_gpu_gives_the_same_as_that_of_a_cpu(slide: Path, model: Path) -> None:
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 1.0)
    grid = pyramid.grid(spec, 60)
    x, y = (part.ravel() for part in np.meshgrid(grid.x()[:6], grid.y()[:5]))
    predictor = predict.Model(model / "weights.safetensors", model / "model.json", HeatmapRun()).predictor
    found = []
    for way in (scan_threads, scan_batches):
        parts = list(way(Walk(pyramid, spec, x, y), predictor, 2, 5))
        assert [part.first for part in parts] == list(range(5, 30, 4))
        assert all(part.whole.all() for part in parts)
        found.append(np.concatenate([part.probabilities for part in parts]))
    np.testing.assert_array_equal(*found)
    assert len(found[0]) == 25


def test_the_map_lies_on_the_slide(slide: Path, model: Path, tmp_path: Path) -> None:
    run(slide, model, tmp_path, stride_um=60)
    image = read_image(tmp_path / "s1.ome.zarr", 0.5)
    assert (image.mpp, image.first_centre_um) == (pytest.approx(60), pytest.approx(37.5))
    facts = json.loads((tmp_path / "s1.json").read_text())
    assert facts["model_sha256"] == json.loads((model / "model.json").read_text())["weights_sha256"]
    assert facts["precision"] == {"device": "cpu", "dtype": "float32"}


def without_tissue(slide: Path, folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    empty = Image.from_corner(np.zeros((63, 82), np.uint8), 8)
    write_image(folder / name / "tissue.ome.zarr", empty, name="t", slide_mpp=0.5)
    for file in ("pyramid.ome.zarr", "pyramid.json"):
        (folder / name / file).symlink_to(slide / "s1" / file)


def test_a_slide_without_tissue_gives_an_empty_map(
    slide: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_tissue(slide, tmp_path / "bare", "s1")
    assert np.isnan(run(tmp_path / "bare", model, tmp_path / "none", overlap_mean=True, smoothing_um=9)).all()
    facts = json.loads((tmp_path / "none" / "s1.json").read_text())
    assert (facts["maximum"], facts["positions"], facts["precision"]) == (
        None,
        0,
        {"device": "cpu", "dtype": "float32"},
    )
    assert "no position has more than 0 tissue, the map is empty" in caplog.text


def test_weights_of_another_model_json_are_refused(slide: Path, model: Path, tmp_path: Path) -> None:
    write_model_json(tmp_path / "model.json", ModelFacts(75, 1.0, ("normal", "tumor"), "0" * 64))
    (tmp_path / "weights.safetensors").symlink_to(model / "weights.safetensors")
    with pytest.raises(ModelError, match="not the weights that"):
        run(slide, tmp_path, tmp_path / "out")


def test_a_model_finer_than_the_slide_is_refused_unless_one_insists(slide: Path, model: Path, tmp_path: Path) -> None:
    digest = json.loads((model / "model.json").read_text())["weights_sha256"]
    write_model_json(tmp_path / "model.json", ModelFacts(75, 0.25, ("normal", "tumor"), digest))
    (tmp_path / "weights.safetensors").symlink_to(model / "weights.safetensors")
    with pytest.raises(StoreError, match=r"coarser than the 0\.25 asked for.*--allow-upsampling"):
        run(slide, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    heat = run(slide, tmp_path, tmp_path / "out", allow_upsampling=True, stride_um=120)
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 0.25, allow_upsampling=True)
    assert spec.read_px == 38
    row, column = np.argwhere(np.isfinite(heat))[5]
    patch = pyramid.read_patch(int(column * 240), int(row * 240), spec)
    assert heat[row, column] == pytest.approx(probability(model, patch), abs=1e-5)


def test_an_interrupted_map_goes_on_and_ends_the_same(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole = run(slide, model, tmp_path / "a", stride_um=40)
    predicted = count_predicted(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(RawScores, "add", stopping_at(40))
        with pytest.raises(KeyboardInterrupt):
            run(slide, model, tmp_path / "b", stride_um=40)
    assert not (tmp_path / "b" / "s1.json").exists()
    assert not (tmp_path / "b" / "s1.ome.zarr").exists()
    predicted.clear()
    np.testing.assert_array_equal(run(slide, model, tmp_path / "b", stride_um=40), whole)
    positions = int(np.isfinite(whole).sum())
    assert f"going on from patch 40 of {positions}" in caplog.text
    # And a batch that warms up.
    assert sum(predicted) == positions - 40 + CPU_BATCH
    assert (tmp_path / "a" / "s1.json").read_bytes() == (tmp_path / "b" / "s1.json").read_bytes()


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(slide: Path, model: Path, tmp_path: Path) -> None:
    options = HeatmapRun(stride_um=18)
    code = (
        "from wsi_pipeline.stages import predict; predict._SAVE_SECONDS = 0.2; "
        "from wsi_pipeline.cli import main; main()"
    )

    def start(out: Path, threads: int) -> subprocess.Popen[str]:
        command = ["heatmap", "--slides", slide, "--slide", "s1", "--weights", model / "weights.safetensors"]
        command += ["--model", model / "model.json", "--output", out, "--options", options.model_dump_json()]
        command += ["--threads", str(threads)]
        return subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)

    killed, raw = tmp_path / "killed", tmp_path / "killed" / "s1.raw.npz"
    sizes = [0]
    for _ in range(2):
        process = start(killed, 2)
        while not raw.exists() or raw.stat().st_size <= sizes[-1]:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert not (killed / "s1.json").exists()
        sizes.append(raw.stat().st_size)
    last = start(killed, 1)
    assert "going on from patch" in last.communicate()[1]
    whole = start(tmp_path / "whole", 2)
    whole.communicate()
    assert last.returncode == whole.returncode == 0
    for name in ("s1.json", "s1.ome.zarr/0/c/0/0"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def count_predicted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many patches each call of the network has been given from now on."""
    predicted: list[int] = []
    call = Predictor.__call__

    def counted(self: Predictor, pixels: torch.Tensor) -> torch.Tensor:
        predicted.append(len(pixels))
        return call(self, pixels)

    monkeypatch.setattr(Predictor, "__call__", counted)
    return predicted


def stopping_at(number: int) -> Callable[..., None]:
    add = RawScores.add

    def stop(self: RawScores, first: int, *rest: Any) -> None:
        if first >= number:
            raise KeyboardInterrupt
        add(self, first, *rest)

    return stop


def test_the_network_is_not_asked_again_for_another_average(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(slide, model, tmp_path, stride_um=37.5)
    predicted = count_predicted(monkeypatch)
    mean = run(slide, model, tmp_path, stride_um=37.5, overlap_mean=True)
    assert not predicted
    assert np.nanstd(mean) < np.nanstd(plain)
    assert json.loads((tmp_path / "s1.json").read_text())["options"]["overlap_mean"]
    again = run(slide, model, tmp_path, stride_um=37.5, orientations=True)
    assert predicted
    assert (again != plain).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_another_kind_of_device_began_is_begun_again(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    whole = run(slide, model, tmp_path / "a", stride_um=40)
    save = RawScores.save

    def as_a_gpu(self: RawScores) -> None:
        self.facts = {"device": "cuda", "dtype": dtype}
        save(self)

    with monkeypatch.context() as other:
        other.setattr(RawScores, "save", as_a_gpu)
        other.setattr(RawScores, "add", stopping_at(40))
        with pytest.raises(KeyboardInterrupt):
            run(slide, model, tmp_path / "b", stride_um=40)
    predicted = count_predicted(monkeypatch)
    np.testing.assert_array_equal(run(slide, model, tmp_path / "b", stride_um=40), whole)
    assert sum(predicted) == np.isfinite(whole).sum() + CPU_BATCH


def test_orientations_are_averaged(slide: Path, model: Path, tmp_path: Path) -> None:
    heat = run(slide, model, tmp_path, orientations=True, stride_um=150)
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    row, column = np.argwhere(np.isfinite(heat))[2]
    patch = pyramid.read_patch(int(column * 300), int(row * 300), pyramid.patch_spec(75, 1.0))
    turns = [np.rot90(side, k) for k in range(4) for side in (patch, patch[:, ::-1])]
    found = [probability(model, turn) for turn in turns]
    assert np.std(found) > 1e-4
    assert heat[row, column] == pytest.approx(np.mean(found), abs=1e-5)


def test_a_damaged_chunk_costs_its_patches_only(
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


def test_several_slides_are_predicted_with_a_model_that_is_loaded_once(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(slide, model, tmp_path / "alone")
    without_tissue(slide, tmp_path / "slides", "bare")
    for name in ("s1", "s2"):
        (tmp_path / "slides" / name).symlink_to(slide / "s1")
    loaded = []
    load = predict.load_network
    monkeypatch.setattr(predict, "load_network", lambda *given: loaded.append(1) or load(*given))
    files, out = (model / "weights.safetensors", model / "model.json"), tmp_path / "out"
    slides = ["s1", "gone", "bare", "s2"]
    predict.run(slides, tmp_path / "slides", *files, out, out / "batch.json", HeatmapRun(), 2)
    assert len(loaded) == 1
    assert "gone: left out here: " in caplog.text
    positions = int(np.isfinite(whole).sum())
    assert json.loads((out / "batch.json").read_text())["positions"] == {"s1": positions, "bare": 0, "s2": positions}
    for name in ("s1", "s2"):
        heatmap.run(name, tmp_path / "slides", *files, out, HeatmapRun(), 2)
        np.testing.assert_array_equal(read_image(out / f"{name}.ome.zarr", 0.5).data, whole)
    assert len(loaded) == 1
    with pytest.raises(StoreError, match=r"gone/pyramid\.ome\.zarr: not a pyramid"):
        heatmap.run("gone", tmp_path / "slides", *files, out, HeatmapRun(), 2)


def test_a_batch_that_does_not_fit_is_halved(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(slide, model, tmp_path / "a")
    forward = InceptionV3.forward

    def small(most: int) -> Callable[..., torch.Tensor]:
        def run_small(self: InceptionV3, x: torch.Tensor) -> torch.Tensor:
            if len(x) > most:
                raise torch.OutOfMemoryError("tried to allocate 1 GiB")
            return forward(self, x)

        return run_small

    monkeypatch.setattr(InceptionV3, "forward", small(3))
    np.testing.assert_array_equal(run(slide, model, tmp_path / "b", threads=1, batch_size=13), whole)
    assert "a batch of 13 patches does not fit the memory, going on with 6" in caplog.text
    assert "a batch of 6 patches does not fit the memory, going on with 3" in caplog.text
    monkeypatch.setattr(InceptionV3, "forward", small(1))
    with pytest.raises(ModelError, match="a batch of 2 patches does not fit the memory of the device"):
        run(slide, model, tmp_path / "c", batch_size=4)


def test_the_batch_follows_from_the_memory() -> None:
    assert [fitting(free * 2.0**30, 64 * 2.0**20, 512) for free in (0.01, 1, 8, 80)] == [2, 8, 64, 512]


def test_values_that_are_not_finite_are_an_error(slide: Path, tmp_path: Path) -> None:
    network = InceptionV3(2)
    initialize(network, 3)
    torch.nn.init.constant_(network.fc.bias, float("nan"))
    digest = save_weights(tmp_path / "weights.safetensors", network.state_dict())
    write_model_json(tmp_path / "model.json", ModelFacts(75, 1.0, ("normal", "tumor"), digest))
    with pytest.raises(ModelError, match=r"weights\.safetensors: the network gives values that are not finite"):
        run(slide, tmp_path, tmp_path / "out")


def test_progress_is_told(slide: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    positions = int(np.isfinite(run(slide, model, tmp_path)).sum())
    assert re.search(
        rf"{positions} of {positions} patches, [\d.]+/s, \d+ % of the time for reading them, 0.0 min left", caplog.text
    )
