"""Predictions of a slide: precision, batches, devices, the cache and interruptions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.predicting import CLASSES, heat_of, run, write_model, write_slide, write_slide_without_tissue
from helpers.training import needs_bfloat16
from wsi_pipeline.config import ConvertRun, HeatmapRun, PredictRun
from wsi_pipeline.errors import ModelError, StoreError
from wsi_pipeline.model import slide_prediction
from wsi_pipeline.model.device import Device
from wsi_pipeline.model.inception import InceptionV3
from wsi_pipeline.model.inference import infer_on_cpu, infer_on_gpu
from wsi_pipeline.model.model_dir import ModelMetadata, load_network
from wsi_pipeline.model.prediction_cache import PredictionCache
from wsi_pipeline.model.predictor import CPU_BATCH, Predictor, largest_batch, optimized_for
from wsi_pipeline.model.slide_prediction import TrainedModel
from wsi_pipeline.pyramid.patch_reader import PatchReader
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.models import PrecisionFacts, PredictReceipt
from wsi_pipeline.stages import heatmap, predict


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide"), ConvertRun(chunk_px=256, shard_px=512))


@pytest.fixture(scope="module")
def mapped(slide: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder with the map of s1 for given options, predicted once with one thread."""

    @cache
    def folder(**options: Any) -> Path:
        out = tmp_path_factory.mktemp("mapped")
        run(slide, model, out, threads=1, **options)
        return out

    return folder


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
@pytest.mark.parametrize(
    ("batch_size", "threads"),
    [(2, 3), *(pytest.param(*other, marks=pytest.mark.slow) for other in ((7, 2), (64, 1), (1, 2)))],
)
def test_heatmaps_do_not_depend_on_batches_and_threads(
    slide: Path,
    model: Path,
    mapped: Callable[..., Path],
    tmp_path: Path,
    batch_size: int,
    threads: int,
    precision: str,
) -> None:
    found = run(slide, model, tmp_path, threads=threads, batch_size=batch_size, precision=precision)
    np.testing.assert_array_equal(found, heat_of(mapped(precision=precision)))


@pytest.mark.slow
@needs_bfloat16
def test_bfloat16_is_close_to_float32_and_reports_the_difference(
    slide: Path, model: Path, mapped: Callable[..., Path], tmp_path: Path
) -> None:
    exact = heat_of(mapped(stride_um=40))
    rounded = run(slide, model, tmp_path, stride_um=40, precision="bfloat16")
    facts = json.loads((tmp_path / "s1.json").read_text())["precision"]
    known = np.isfinite(exact)
    np.testing.assert_array_equal(np.isfinite(rounded), known)
    away = np.abs(rounded[known] - exact[known])
    assert (facts["dtype"], facts["patches_compared"]) == ("bfloat16", 64)
    assert 0 < facts["largest_difference"] <= away.max() + 1e-7
    assert facts["largest_difference"] > away.max() / 10
    assert away.max() < np.std(exact[known]) / 4


@needs_bfloat16
def test_the_last_layer_is_never_in_bfloat16(model: Path) -> None:
    network = load_network(model / "weights.safetensors", ModelMetadata(75, 1.0, CLASSES, ""))
    x = torch.rand(4, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    device = Device(torch.device("cpu"), torch.bfloat16)
    with torch.inference_mode(), device.autocast():
        trained = network(x)
    with torch.inference_mode():
        predicted = optimized_for(network, device)(x.bfloat16())
    for logits, dtype in ((trained, torch.float32), (predicted, torch.float64)):
        assert logits.dtype == dtype
        assert (logits.bfloat16() != logits).any()


@needs_bfloat16
def test_predictions_of_another_precision_are_reused_only_with_auto(
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
    with pytest.raises(ModelError, match=r"this CPU does not support bfloat16\. Set precision to auto or float32"):
        run(slide, model, tmp_path, precision="bfloat16")
    assert not list(tmp_path.iterdir())


def test_the_gpu_loop_matches_the_cpu_loop(slide: Path, model: Path) -> None:
    pyramid = Pyramid(slide / "s1" / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(75, 1.0)
    grid = pyramid.grid(spec, 60)
    x, y = (part.ravel() for part in np.meshgrid(grid.x()[:6], grid.y()[:5]))
    predictor = TrainedModel(model / "weights.safetensors", model / "model.json", HeatmapRun()).predictor
    found = []
    for way in (infer_on_cpu, infer_on_gpu):
        parts = list(way(PatchReader(pyramid, spec, x, y), predictor, 2, 5))
        assert [part.first for part in parts] == list(range(5, 30, 4))
        assert all(part.whole.all() for part in parts)
        found.append(np.concatenate([part.log_odds for part in parts]))
    np.testing.assert_array_equal(*found)
    assert len(found[0]) == 25


@pytest.mark.slow
def test_an_interrupted_heatmap_resumes_with_the_same_result(
    slide: Path,
    model: Path,
    mapped: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    uninterrupted = mapped(stride_um=40)
    whole = heat_of(uninterrupted)
    predicted = count_predicted(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(PredictionCache, "add", stopping_at(40))
        with pytest.raises(KeyboardInterrupt):
            run(slide, model, tmp_path, stride_um=40)
    assert not (tmp_path / "s1.json").exists()
    assert not (tmp_path / "s1.ome.zarr").exists()
    predicted.clear()
    np.testing.assert_array_equal(run(slide, model, tmp_path, stride_um=40), whole)
    positions = int(np.isfinite(whole).sum())
    assert f"resuming from patch 40 of {positions}" in caplog.text
    # The warm-up batch is counted too.
    assert sum(predicted) == positions - 40 + CPU_BATCH
    assert (uninterrupted / "s1.json").read_bytes() == (tmp_path / "s1.json").read_bytes()


@pytest.mark.slow
def test_a_killed_job_resumes_with_the_same_bytes(slide: Path, model: Path, tmp_path: Path) -> None:
    options = HeatmapRun(stride_um=18)
    code = (
        "from wsi_pipeline.model import slide_prediction; slide_prediction._SAVE_SECONDS = 0.2; "
        "from wsi_pipeline.cli.app import main; main()"
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
    assert "resuming from patch" in last.communicate()[1]
    whole = start(tmp_path / "whole", 2)
    whole.communicate()
    assert last.returncode == whole.returncode == 0
    for name in ("s1.json", "s1.ome.zarr/0/c/0/0"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def count_predicted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of patches of each later call of the predictor."""
    predicted: list[int] = []
    call = Predictor.__call__

    def counted(self: Predictor, pixels: torch.Tensor) -> torch.Tensor:
        predicted.append(len(pixels))
        return call(self, pixels)

    monkeypatch.setattr(Predictor, "__call__", counted)
    return predicted


def stopping_at(number: int) -> Callable[..., None]:
    add = PredictionCache.add

    def stop(self: PredictionCache, first: int, *rest: Any) -> None:
        if first >= number:
            raise KeyboardInterrupt
        add(self, first, *rest)

    return stop


@pytest.mark.slow
def test_a_change_of_the_overlap_mean_needs_no_inference(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(slide, model, tmp_path, stride_um=60)
    predicted = count_predicted(monkeypatch)
    mean = run(slide, model, tmp_path, stride_um=60, overlap_mean=True)
    assert not predicted
    assert np.nanstd(mean) < np.nanstd(plain)
    assert json.loads((tmp_path / "s1.json").read_text())["options"]["overlap_mean"]
    again = run(slide, model, tmp_path, stride_um=60, orientations=True)
    assert predicted
    assert (again != plain).any()


def test_the_heatmap_uses_the_output_of_predict(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, facts = model / "weights.safetensors", model / "model.json"
    whole = run(slide, model, tmp_path / "a", stride_um=40)

    def predict_into(folder: Path) -> None:
        outputs = predict.Outputs(folder, tmp_path / "r.json", checkpoints=tmp_path / "kept")
        predict.run(["s1"], predict.Inputs(slide, weights, facts), outputs, PredictRun(stride_um=40), threads=2)

    with monkeypatch.context() as broken:
        broken.setattr(PredictionCache, "add", stopping_at(40))
        with pytest.raises(KeyboardInterrupt):
            predict_into(tmp_path / "made")
    # The predictions of half a slide are kept as a checkpoint and not published.
    assert (tmp_path / "kept" / "s1.raw.npz").is_file()
    assert not (tmp_path / "made").exists()
    calls = count_predicted(monkeypatch)
    predict_into(tmp_path / "made")
    assert sum(calls) < int(np.isfinite(whole).sum())
    calls.clear()
    # As when slides are distributed differently over jobs: published predictions are not recomputed.
    predict_into(tmp_path / "again")
    inputs = heatmap.Inputs(slides=slide, weights=weights, model=facts, predictions=tmp_path / "again")
    heatmap.run("s1", inputs, heatmap.Outputs(tmp_path / "b", checkpoints=tmp_path / "c"), HeatmapRun(stride_um=40))
    assert not calls
    assert not (tmp_path / "c").exists()
    assert (tmp_path / "b" / "s1.json").read_bytes() == (tmp_path / "a" / "s1.json").read_bytes()
    np.testing.assert_array_equal(heat_of(tmp_path / "b"), whole)


def test_patches_unread_by_predict_stay_unread(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PredictionCache.save

    def damaged(self: PredictionCache, path: Path | None = None) -> None:
        self.whole[3] = False
        save(self, path)

    weights, facts = model / "weights.safetensors", model / "model.json"
    with monkeypatch.context() as broken:
        broken.setattr(PredictionCache, "save", damaged)
        outputs = predict.Outputs(tmp_path, tmp_path / "r.json")
        predict.run(["s1"], predict.Inputs(slide, weights, facts), outputs, PredictRun(stride_um=40), threads=2)
    calls = count_predicted(monkeypatch)
    inputs = heatmap.Inputs(slides=slide, weights=weights, model=facts, predictions=tmp_path)
    heatmap.run("s1", inputs, heatmap.Outputs(tmp_path / "b"), HeatmapRun(stride_um=40), threads=2)
    assert not calls
    assert json.loads((tmp_path / "b" / "s1.json").read_text())["unread_positions"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predictions_started_on_another_device_type_are_discarded(
    slide: Path,
    model: Path,
    mapped: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
) -> None:
    whole = heat_of(mapped(stride_um=40))
    save = PredictionCache.save

    def as_a_gpu(self: PredictionCache, path: Path | None = None) -> None:
        self.precision = PrecisionFacts(device="cuda", dtype=dtype)
        save(self, path)

    with monkeypatch.context() as other:
        other.setattr(PredictionCache, "save", as_a_gpu)
        other.setattr(PredictionCache, "add", stopping_at(40))
        with pytest.raises(KeyboardInterrupt):
            run(slide, model, tmp_path, stride_um=40)
    predicted = count_predicted(monkeypatch)
    np.testing.assert_array_equal(run(slide, model, tmp_path, stride_um=40), whole)
    assert sum(predicted) == np.isfinite(whole).sum() + CPU_BATCH


@pytest.mark.slow
def test_the_model_is_loaded_once_for_several_slides(
    slide: Path,
    model: Path,
    mapped: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = heat_of(mapped())
    write_slide_without_tissue(slide, tmp_path / "slides", "bare")
    for name in ("s1", "s2"):
        (tmp_path / "slides" / name).symlink_to(slide / "s1")
    loaded = []
    load = slide_prediction.load_network
    monkeypatch.setattr(slide_prediction, "load_network", lambda *given: loaded.append(1) or load(*given))
    out = tmp_path / "out"
    inputs = predict.Inputs(tmp_path / "slides", model / "weights.safetensors", model / "model.json")
    predict.run(["s1", "gone", "bare", "s2"], inputs, predict.Outputs(out, out / "batch.json"), PredictRun(), threads=2)
    assert len(loaded) == 1
    assert "gone: left out here: " in caplog.text
    positions = int(np.isfinite(whole).sum())
    receipt = read_receipt(out / "batch.json", PredictReceipt)
    assert receipt.positions == {"s1": positions, "bare": 0, "s2": positions}

    def finish(name: str) -> np.ndarray:
        given = heatmap.Inputs(slides=inputs.slides, weights=inputs.weights, model=inputs.model)
        heatmap.run(name, given, heatmap.Outputs(out), HeatmapRun(), threads=2)
        return heat_of(out, name)

    for name in ("s1", "s2"):
        np.testing.assert_array_equal(finish(name), whole)
    assert len(loaded) == 1
    with pytest.raises(StoreError, match=r"gone/pyramid\.ome\.zarr: not a pyramid"):
        finish("gone")


def test_a_batch_that_does_not_fit_is_halved(
    slide: Path,
    model: Path,
    mapped: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = heat_of(mapped())
    forward = InceptionV3.forward

    def small(most: int) -> Callable[..., torch.Tensor]:
        def run_small(self: InceptionV3, x: torch.Tensor) -> torch.Tensor:
            if len(x) > most:
                raise torch.OutOfMemoryError("tried to allocate 1 GiB")
            return forward(self, x)

        return run_small

    monkeypatch.setattr(InceptionV3, "forward", small(3))
    np.testing.assert_array_equal(run(slide, model, tmp_path / "b", threads=1, batch_size=13), whole)
    assert "a batch of 13 patches does not fit the memory, continuing with 6" in caplog.text
    assert "a batch of 6 patches does not fit the memory, continuing with 3" in caplog.text
    monkeypatch.setattr(InceptionV3, "forward", small(1))
    with pytest.raises(ModelError, match="a batch of 2 patches does not fit the memory of the device"):
        run(slide, model, tmp_path / "c", batch_size=4)


def test_the_batch_size_depends_on_the_free_memory() -> None:
    assert [largest_batch(free * 2.0**30, 64 * 2.0**20, 512) for free in (0.01, 1, 8, 80)] == [2, 8, 64, 512]
