"""Several processes train as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers import training
from helpers.training import needs_bfloat16
from wsi_pipeline.model.distributed import STOPPED, Team


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    training.write_cohort(root)
    return root


def double_precision(cohort: Path, store: Path, size: int) -> list[float]:
    """Losses of 20 steps in float64 by a team."""
    command = [sys.executable, str(Path(__file__).parent / "double_precision.py"), str(cohort), "20"]
    members = []
    for rank in range(size):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "WSI_PIPELINE_TEAM": str(store)}
        environment = {**os.environ, **(place if size > 1 else {})}
        members.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    outputs = [member.communicate()[0] for member in members]
    assert [member.returncode for member in members] == [0] * size
    losses: list[float] = json.loads(outputs[0])
    return losses


@pytest.mark.slow
def test_two_processes_make_the_losses_of_one(cohort: Path, tmp_path: Path) -> None:
    # In float64, so that nothing but a wrong sum can make a difference.
    alone, together = (double_precision(cohort, tmp_path / "store", size) for size in (1, 2))
    assert len(alone) == 20
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=[needs_bfloat16, pytest.mark.slow])])
def test_two_processes_train_from_the_command_line(cohort: Path, tmp_path: Path, precision: str) -> None:
    options = {"max_steps": 2, "validate_every": 1, "average_decay": 0.5, "precision": precision}
    process = training.start(cohort, tmp_path, "--gpus", "2", **options)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    facts = training.described(tmp_path)
    assert (facts["processes"], facts["steps"], facts["dtype"]) == (2, 2, precision)
    # Names and shapes are those of a network that was trained alone.
    state = load_file(tmp_path / "weights.safetensors")
    assert state["Mixed_5b.branch1x1.bn.running_mean"].shape == (64,)
    assert said.count("training loss") == 2


@pytest.mark.slow
def test_both_stop_at_one_step_and_one_goes_on(cohort: Path, tmp_path: Path) -> None:
    process = training.start(cohort, tmp_path, "--gpus", "2", max_steps=40, validate_every=40)
    checkpoint = tmp_path / "checkpoints" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == STOPPED, said
    assert said.count("stopped at step") == 2
    assert len({line for line in said.splitlines() if line.startswith("stopped at step")}) == 1
    stopped_at = int(said.split("stopped at step ")[1].split()[0])
    # What two began one may finish.
    options = {"max_steps": 40, "validate_every": 40}
    process = training.start(cohort, tmp_path, **options)
    while (line := process.stderr.readline()) and "going on" not in line:
        pass
    process.kill()
    process.wait()
    process.stderr.close()
    assert f"going on from step {stopped_at}" in line


def test_parts_are_all_patches_once() -> None:
    for size in (1, 2, 3, 5):
        parts = [range(10)[Team(rank, size).part(10)] for rank in range(size)]
        assert [k for part in parts for k in part] == list(range(10))


def test_alone_nothing_is_shared() -> None:
    values = torch.arange(3.0)
    assert Team().total(values) is values
    assert Team().gathered(values, [3]) is values
    assert isinstance(nn.BatchNorm2d(1), nn.BatchNorm2d)
