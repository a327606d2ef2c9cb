"""Training with several processes gives the network of a single process.

On a CPU batch norms are not synchronised across processes, so here they keep their statistics: by `freeze_steps`, which
trains the last layer alone, or in `double_precision.py`, which trains all layers. test_cuda.py trains batch norms too.
"""

from __future__ import annotations

import csv
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

from helpers import training
from helpers.training import needs_bfloat16
from wsi_pipeline.model.distributed import STOPPED_EXIT_CODE, DistributedContext


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    training.write_cohort(root)
    return root


def double_precision(cohort: Path, rendezvous: Path, count: int) -> list[float]:
    """Losses of 6 steps in float64 with `count` processes."""
    command = [sys.executable, str(Path(__file__).parent / "double_precision.py"), str(cohort), "6"]
    processes = []
    for rank in range(count):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        environment = {**os.environ, **ranks, "WSI_PIPELINE_RENDEZVOUS": str(rendezvous)}
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    losses: list[float] = json.loads(outputs[0])
    return losses


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(cohort: Path, tmp_path: Path) -> None:
    # In float64 only a wrong sum can exceed the tolerance.
    alone, together = (double_precision(cohort, tmp_path / f"rendezvous-{count}", count) for count in (1, 2))
    assert len(alone) == 6
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def history(out: Path) -> list[list[float]]:
    rows = list(csv.reader((out / "history.csv").read_text().splitlines()))
    return [[float(value) for value in row] for row in rows[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_two_processes_train_the_same_model_as_one(cohort: Path, tmp_path: Path, precision: str) -> None:
    options = {"max_steps": 6, "freeze_steps": 6, "validate_every": 3, "average_decay": 0.5, "precision": precision}
    for count in (1, 2):
        out = tmp_path / str(count)
        process = training.start(cohort, out, "--gpus", str(count), **options)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        facts = training.model_facts(out)
        assert (facts["processes"], facts["steps"], facts["dtype"]) == (count, 6, precision)
        assert stderr.count("training loss") == 2
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "float32" else {"rtol": 0.01, "atol": 1e-3}
    np.testing.assert_allclose(history(tmp_path / "2"), history(tmp_path / "1"), **tolerance)
    one, two = (load_file(tmp_path / str(count) / "last.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, **tolerance, msg=name)


@pytest.mark.slow
def test_several_cpu_processes_cannot_train_batch_norms(cohort: Path, tmp_path: Path) -> None:
    process = training.start(cohort, tmp_path, "--gpus", "2")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2, stderr
    assert "2 processes cannot train on CPUs: batch norms are synchronised on GPUs only. Set gpu of" in stderr
    assert not (tmp_path / "model.json").exists()


def started(cohort: Path, out: Path) -> subprocess.Popen[str]:
    """Start two processes of a long training and wait for their first checkpoint."""
    process = training.start(cohort, out, "--gpus", "2", **LONG)
    checkpoint = out / "checkpoints" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


LONG = {"max_steps": 500, "freeze_steps": 500, "validate_every": 500}


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_one_process_resumes(cohort: Path, tmp_path: Path) -> None:
    process = started(cohort, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == STOPPED_EXIT_CODE, stderr
    assert stderr.count("stopped at step") == 2
    assert len({line for line in stderr.splitlines() if line.startswith("stopped at step")}) == 1
    stopped_at = int(stderr.split("stopped at step ")[1].split()[0])
    # A single process can resume from a checkpoint of two.
    process = training.start(cohort, tmp_path, **LONG)
    while (line := process.stderr.readline()) and "resuming" not in line:
        pass
    process.kill()
    process.wait()
    process.stderr.close()
    assert f"resuming from step {stopped_at}" in line


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_other(cohort: Path, tmp_path: Path) -> None:
    process = started(cohort, tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, 2, STOPPED_EXIT_CODE), stderr
    assert not any(Path("/proc", child).exists() for child in children)
    assert not (tmp_path / "model.json").exists()


def test_shards_cover_all_patches_once() -> None:
    for count in (1, 2, 3, 5):
        shards = [range(10)[DistributedContext(rank, count).shard(10)] for rank in range(count)]
        assert [k for shard in shards for k in shard] == list(range(10))


def test_a_single_process_does_not_communicate() -> None:
    values = torch.arange(3.0)
    assert DistributedContext().all_reduce(values) is values
    assert DistributedContext().all_gather(values, [3]) is values
