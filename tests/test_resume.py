"""After a stop, a kill or a damaged checkpoint, training ends with the weights of an uninterrupted one."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import training
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.distributed import STOPPED_EXIT_CODE
from wsi_pipeline.model.stop_signals import stop_on_signals
from wsi_pipeline.model.training_log import TrainingLog

STEPS = 12
OPTIONS = {"max_steps": STEPS, "validate_every": 5, "average_decay": 0.9}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    training.write_cohort(root)
    return root


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training."""
    out = tmp_path_factory.mktemp("whole")
    process = training.start(cohort, out, "--workers", "3", **OPTIONS)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    return out


def finish(cohort: Path, out: Path, *arguments: str) -> str:
    process = training.start(cohort, out, *arguments, **OPTIONS)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    return stderr


def assert_same(out: Path, whole: Path) -> None:
    for name in ("weights.safetensors", "last.safetensors"):
        ours, theirs = load_file(out / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (out / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    assert not list((out / "checkpoints").iterdir())


def wait_for_checkpoints(out: Path, count: int) -> None:
    """Wait until `count` checkpoints have been seen, an existing one included."""
    path, seen, before = out / "checkpoints" / "checkpoint.pt", 0, None
    deadline = time.monotonic() + 120
    while seen < count and time.monotonic() < deadline:
        try:
            now = path.stat().st_mtime_ns
        except FileNotFoundError:
            now = before
        if now != before:
            before, seen = now, seen + 1
        time.sleep(0.01)
    assert seen == count


@pytest.mark.slow
def test_training_stopped_once_and_killed_five_times_gives_the_same_weights(
    cohort: Path, whole: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for kill in range(6):
        process = training.start(cohort, tmp_path, "--workers", str(1 + kill % 3), **OPTIONS)
        if kill == 0:
            # Stopped once, by a signal that training handles.
            wait_for_checkpoints(tmp_path, 1)
            process.terminate()
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == STOPPED_EXIT_CODE, stderr
            continue
        # The first checkpoint seen may be that of the previous run.
        wait_for_checkpoints(tmp_path, int(rng.integers(2, 4)))
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        assert not (tmp_path / "weights.safetensors").exists()
    stderr = finish(cohort, tmp_path, "--workers", "1")
    assert "resuming from step" in stderr
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_training_after_a_checkpoint(cohort: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = training.start(cohort, tmp_path, "--checkpoint-minutes", "60", **OPTIONS)
    log = []
    while (line := process.stderr.readline()) and "step 5:" not in line:
        log.append(line)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == STOPPED_EXIT_CODE == 75, "".join(log) + stderr
    assert "a checkpoint is written after this step" in stderr
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    assert int(stderr.split("stopped at step ")[1].split()[0]) >= 5
    assert (tmp_path / "checkpoints" / "checkpoint.pt").exists()


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    signals = []
    with stop_on_signals(lambda: signals.append(1)):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        assert len(signals) == 5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(signals) == 5


def test_a_damaged_checkpoint_is_replaced_by_its_predecessor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        assert checkpoints.save({"inputs": "a", "step": step, "network": {"w": torch.full((9,), float(step))}})
    cpu = torch.device("cpu")
    assert checkpoints.load("a", cpu)["step"] == 3
    assert checkpoints.load("b", cpu) is None
    newest = tmp_path / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoints.load("a", cpu)["step"] == 2
    assert "checkpoint.pt: ignored, it is damaged" in caplog.text
    (tmp_path / "checkpoint-before.pt").write_bytes(b"")
    assert checkpoints.load("a", cpu) is None


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.save({"inputs": "a", "step": 1})
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        assert not checkpoints.save({"inputs": "a", "step": 2, "network": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "no checkpoint at step 2" in caplog.text
    assert checkpoints.load("a", torch.device("cpu"))["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_tensorboard_has_the_rows_of_the_history(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    training_log = TrainingLog(enabled=True, events=tmp_path)
    row = {"patches": 40, "learning_rate": 0.1, "train_loss": 0.7, "validation_loss": None, "validation_auc": None}
    training_log.record({"step": 5, **row})
    training_log.record({"step": 10, **row, "validation_auc": 0.9, "validation_loss": 0.5})
    training_log.image(np.zeros((8, 8, 3), np.uint8))
    training_log.close()
    (path,) = tmp_path.iterdir()
    data, tags, position = path.read_bytes(), set[tuple[str, int]](), 0
    while position < len(data):
        # A record is its length, two checksums and an Event (TensorFlow's TFRecord).
        length = int.from_bytes(data[position : position + 8], "little")
        event = Event.FromString(data[position + 12 : position + 12 + length])
        tags |= {(value.tag, event.step) for value in event.summary.value}
        position += 16 + length
    assert {("train_loss", 5), ("validation_auc", 10), ("learning_rate", 10), ("augmented_batch", 0)} <= tags
    assert ("validation_auc", 5) not in tags
    TrainingLog(enabled=False, events=tmp_path / "none").close()
    assert not (tmp_path / "none").exists()
