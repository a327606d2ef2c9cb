"""Training and prediction on a GPU, if there is one. It is hidden from all other tests (helpers/gpus.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import training
from helpers.gpus import GPUS
from helpers.predicting import write_slide
from wsi_pipeline.config import AugmentationOptions, ConvertRun, HeatmapRun
from wsi_pipeline.model.distributed import STOPPED_EXIT_CODE
from wsi_pipeline.pyramid.ome_zarr import read_image

DEVICE, DTYPE = "cuda", "bfloat16"
STEPS = 40
OPTIONS = {"max_steps": STEPS, "validate_every": 10, "keep": "last", "average_decay": 0.9}

pytestmark = pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no GPU here")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the GPUs visible to child processes."""
    if GPUS is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", GPUS)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    training.write_cohort(root)
    return root


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides"), ConvertRun())


def train(cohort: Path, out: Path, *arguments: str) -> str:
    process = training.start(cohort, out, *arguments, **OPTIONS)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stderr


def heatmap(slides: Path, model: Path, out: Path, threads: int, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    command = [sys.executable, "-m", "wsi_pipeline", "heatmap", "--slides", str(slides), "--slide", "s1"]
    command += ["--weights", str(model / "weights.safetensors"), "--model", str(model / "model.json")]
    command += ["--output", str(out), "--threads", str(threads)]
    command += ["--options", HeatmapRun(stride_um=25, **options).model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read_image(out / "s1.ome.zarr", 0.5).data, json.loads((out / "s1.json").read_text())


def test_a_gpu_trains_stops_resumes_and_predicts(
    gpu: None, cohort: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(cohort, tmp_path / "whole")
    facts = training.model_facts(tmp_path / "whole")
    assert (facts["device"], facts["steps"]) == (DEVICE, STEPS)
    whole = training.losses(tmp_path / "whole")
    assert np.isfinite(whole).all()
    assert whole[-1] < whole[0]

    process = training.start(cohort, tmp_path / "stopped", "--checkpoint-minutes", "60", **OPTIONS)
    assert process.stderr
    while (line := process.stderr.readline()) and "step 10:" not in line:
        pass
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == STOPPED_EXIT_CODE
    assert "resuming from step" in train(cohort, tmp_path / "stopped")
    # Not bit for bit: the order of summation on a GPU is not fixed.
    np.testing.assert_allclose(training.losses(tmp_path / "stopped")[0], whole[0], rtol=0.05)
    assert training.losses(tmp_path / "stopped")[-1] < whole[0]

    model = tmp_path / "whole"
    found, receipt = heatmap(slides, model, tmp_path / "a", 1)
    assert receipt["precision"]["dtype"] == DTYPE
    assert receipt["precision"]["patches_compared"] > 10
    assert receipt["precision"]["largest_difference"] < 0.05
    again, _ = heatmap(slides, model, tmp_path / "b", 3)
    np.testing.assert_array_equal(again, found)
    fewer, _ = heatmap(slides, model, tmp_path / "c", 2, batch_size=16, orientations=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu, receipt = heatmap(slides, model, tmp_path / "d", 2)
    assert receipt["precision"] == {"device": "cpu", "dtype": "float32"}
    np.testing.assert_allclose(found, on_cpu, atol=0.05)
    orient, _ = heatmap(slides, model, tmp_path / "e", 2, orientations=True)
    np.testing.assert_allclose(fewer, orient, atol=0.05)


def test_training_steps_do_not_wait_for_the_gpu(gpu: None, cohort: Path, tmp_path: Path) -> None:
    code = """
import torch
from wsi_pipeline.cli.app import main
from wsi_pipeline.model.trainer import Trainer

step = Trainer._step

def watched(self, number, *given):
    torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
    try:
        return step(self, number, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")

Trainer._step = watched
main()
"""
    chosen = {**OPTIONS, "max_steps": 6, "clip_norm": 1.0, "augmentation": AugmentationOptions(stain=0.1)}
    process = training.start(cohort, tmp_path, code=code, **chosen)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert training.model_facts(tmp_path)["steps"] == 6


@pytest.mark.skipif(not Path("/dev/nvidia1").exists(), reason="no second GPU here")
def test_two_gpus_give_the_losses_of_one(gpu: None, cohort: Path, tmp_path: Path) -> None:
    train(cohort, tmp_path / "one")
    train(cohort, tmp_path / "two", "--gpus", "2")
    assert training.model_facts(tmp_path / "two")["processes"] == 2
    one, two = (training.losses(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one[0], two[0], rtol=0.1)
    assert two[-1] < two[0]
