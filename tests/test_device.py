"""Which GPU a process takes, told by pretended ones."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest

CODE = """
import logging, sys, types
import torch
from wsi_pipeline.errors import ModelError
from wsi_pipeline.model import device

logging.basicConfig(stream=sys.stdout, format="%(message)s")
torch.cuda.device_count = lambda: 2
torch.cuda.get_device_properties = lambda number: types.SimpleNamespace(uuid=f"{sys.argv[1]}-{number}")
try:
    assert device._own_gpu() == device._own_gpu()
    print(device._own_gpu(), flush=True)
except ModelError as error:
    print(error, flush=True)
sys.stdin.read()
"""
Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that takes a GPU and stays; gives what it says first."""
    machine, started = uuid.uuid4().hex, []

    def begin(size: int = 1) -> tuple[subprocess.Popen[str], str]:
        environment = {**os.environ, "WORLD_SIZE": str(size)}
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, machine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        assert process.stdout
        return process, process.stdout.readline().strip()

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_each_job_takes_a_gpu_of_its_own_while_there_are_any(start: Start) -> None:
    first, number = start()
    assert number == "0"
    assert start()[1] == "1"
    third, said = start()
    assert said == "all GPUs have a job, this one shares GPU 0"
    assert third.stdout
    assert third.stdout.readline().strip() == "0"
    # However a job ends, its GPU is free again.
    first.kill()
    first.wait()
    assert start()[1] == "0"


def test_processes_that_train_together_share_no_gpu(start: Start) -> None:
    assert [start(3)[1] for _ in range(3)] == [
        "0",
        "1",
        "no GPU is free for this process, of 2 that it sees. "
        "Give the job as many GPUs as it has processes (gpu, --gpus)",
    ]
