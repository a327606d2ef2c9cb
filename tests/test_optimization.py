"""Recipes, schedules, weight averaging and the other training options."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.training import OPTIONS, needs_bfloat16, write_patches
from wsi_pipeline.config import Config, TrainRun
from wsi_pipeline.config.loading import options_json, parse_options
from wsi_pipeline.errors import ModelError
from wsi_pipeline.model.augment import _STAINS, AugmentationDraws, jitter_stains
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import PatchDataset
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.inception import InceptionV3, dropout_mask
from wsi_pipeline.model.model_dir import initial_network
from wsi_pipeline.model.optimization import WeightAverage, learning_rate, make_optimizer
from wsi_pipeline.model.patch_set import PatchSet
from wsi_pipeline.model.trainer import StoppedError, Trainer


def test_a_recipe_fills_the_missing_keys_of_a_config() -> None:
    given = {"recipe": "liu2017", "batch_size": 64, "augmentation": {"hue": 0.1}, "schedule": {"warmup_steps": 5}}
    training = Config.model_validate({"training": given}).training
    assert (training.epsilon, training.momentum, training.squared_gradient_decay) == (1.0, 0.9, 0.9)
    assert training.batch_size == 64
    assert (training.augmentation.hue, training.augmentation.contrast) == (0.1, 0.75)
    assert (training.schedule.kind, training.schedule.every_patches, training.schedule.warmup_steps) == (
        "step",
        2_000_000,
        5,
    )
    matlab = Config().training
    assert (matlab.recipe, matlab.learning_rate, matlab.squared_gradient_decay, matlab.batch_size) == (
        "matlab",
        1e-4,
        0.99,
        256,
    )
    # As the options reach a stage.
    options = TrainRun.of(Config.model_validate({"training": given}))
    assert parse_options(TrainRun, options_json(options)) == options


def rates(steps: int, **schedule: object) -> list[float]:
    options = TrainRun.model_validate({"learning_rate": 1.0, "batch_size": 10, "schedule": schedule})
    return [learning_rate(options, step, steps) for step in range(steps)]


def test_schedules_by_hand() -> None:
    assert rates(3) == [1, 1, 1]
    assert rates(4, warmup_steps=2) == [0.5, 1, 1, 1]
    # 20 patches are two steps.
    assert rates(5, kind="step", every_patches=20, factor=0.5) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(5, kind="cosine") == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0], abs=1e-12)
    assert rates(4, kind="cosine", warmup_steps=1, final_share=0.2) == pytest.approx([1, 1, 0.6, 0.2])


@pytest.mark.parametrize(("name", "kind"), [("rmsprop", "RMSprop"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_optimizers_get_their_options(name: str, kind: str) -> None:
    options = TrainRun(optimizer=name, learning_rate=0.5, momentum=0.25, squared_gradient_decay=0.75, epsilon=0.125)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(2))], options, fused=False)
    assert type(optimizer).__name__ == kind
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.5
    assert (group["betas"] if name == "adamw" else group["momentum"]) == ((0.25, 0.75) if name == "adamw" else 0.25)


def test_the_weight_average_is_a_moving_average() -> None:
    layer = nn.BatchNorm1d(1)
    average = WeightAverage(layer, decay=0.5)
    wanted = 1.0
    for step, value in enumerate((3.0, 5.0, -1.0), start=1):
        with torch.no_grad():
            layer.weight.fill_(value)
        layer.num_batches_tracked.fill_(step)
        average.update()
        keep = min(0.5, step / (step + 10))
        wanted = keep * wanted + (1 - keep) * value
        assert average.state["weight"].item() == pytest.approx(wanted)
    assert average.state["num_batches_tracked"].item() == 3
    again = WeightAverage(nn.BatchNorm1d(1), decay=0.5)
    again.restore(average.checkpoint())
    assert again.state["weight"].item() == average.state["weight"].item()


def trainer(tmp_path: Path, labels: list[int] | None = None, **options: object) -> Trainer:
    receipt = write_patches(tmp_path / "s", labels or [0, 1] * 6)
    validation = write_patches(tmp_path / "v", [0, 1] * 2, seed=9)
    banks = [PatchDataset(s.stores, s.indices) for s in (PatchSet([receipt]), PatchSet([validation]))]
    chosen = OPTIONS.model_copy(update={"max_steps": 2, "validate_every": 1, **options})
    network = initial_network("random", 2, 1, None, auxiliary=bool(options.get("auxiliary_weight")))
    return Trainer(network, *banks, chosen, pick_device(1, chosen.precision), Checkpoints(tmp_path), "")


def test_frozen_layers_do_not_change_until_unfrozen(tmp_path: Path) -> None:
    made = trainer(tmp_path, freeze_steps=2, max_steps=3)
    before = {name: tensor.clone() for name, tensor in made._network.state_dict().items()}
    seen = []
    made._record = lambda: seen.append({k: v.clone() for k, v in made._network.state_dict().items()})  # type: ignore[method-assign]
    made.train(1e9)
    for name, tensor in before.items():
        head = name.startswith("fc.")
        assert torch.equal(tensor, seen[1][name]) != head, name
    moved = [name for name, tensor in before.items() if not torch.equal(tensor, seen[2][name])]
    assert len(moved) > 0.95 * len(before)


@pytest.mark.slow
def test_label_smoothing_changes_the_loss_and_clipping_the_gradient(tmp_path: Path) -> None:
    plain, smooth = trainer(tmp_path / "a"), trainer(tmp_path / "b", label_smoothing=0.5)
    clipped = trainer(tmp_path / "c", clip_norm=1e-3)
    for one in (plain, smooth, clipped):
        one.train(1e9)
    assert plain.progress.history[0]["train_loss"] != smooth.progress.history[0]["train_loss"]
    norm = torch.cat([p.grad.flatten() for p in clipped._network.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=0.01)
    assert torch.cat([p.grad.flatten() for p in plain._network.parameters()]).norm().item() > 1e-2


@pytest.mark.slow
def test_the_auxiliary_head_learns_and_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs patches of 299 px, these have 75"):
        trainer(tmp_path / "small", auxiliary_weight=0.4)
    receipt = write_patches(tmp_path / "s", [0, 1], size_px=299)
    sets = PatchSet([receipt])
    options = OPTIONS.model_copy(update={"max_steps": 1, "batch_size": 2, "auxiliary_weight": 0.4})
    network = initial_network("random", 2, 1, None, auxiliary=True)
    before = network.AuxLogits.fc.weight.detach().clone()
    dataset = PatchDataset(sets.stores, sets.indices)
    made = Trainer(network, dataset, PatchDataset([], []), options, pick_device(2), Checkpoints(tmp_path), "")
    made.train(1e9)
    assert not torch.equal(network.AuxLogits.fc.weight, before)
    assert network.AuxLogits.fc.weight.grad.abs().max() > 1e-4
    assert made.selected_state().keys() == InceptionV3(2).state_dict().keys()


@pytest.mark.slow
@needs_bfloat16
def test_bfloat16_trains_float32_weights_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    options = {"max_steps": 4, "validate_every": 1, "average_decay": 0.9}
    exact = trainer(tmp_path / "exact", **options)
    exact.train(1e9)
    whole = trainer(tmp_path / "whole", precision="bfloat16", **options)
    whole.train(1e9)
    # Compare the first step only: later the weights of a random network diverge.
    losses = [one.progress.history[0]["train_loss"] for one in (exact, whole)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert {tensor.dtype for tensor in whole.selected_state().values()} == {torch.float32, torch.int64}

    stopped = trainer(tmp_path / "stopped", precision="bfloat16", **options)
    stopped._log.step = lambda step, *_: step == 2 and stopped.stop()  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        stopped.train(1e9)
    shutil.rmtree(tmp_path / "stopped" / "s")
    shutil.rmtree(tmp_path / "stopped" / "v")
    again = trainer(tmp_path / "stopped", precision="bfloat16", **options)
    again.train(1e9)
    assert stopped.progress.step == 3
    for name, tensor in whole.last_state().items():
        assert torch.equal(tensor, again.last_state()[name]), name


def test_training_stops_when_validation_stops_improving(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=9, patience=2)
    figures = iter([(0.5, 0.7), (0.4, 0.8), (0.6, 0.8), (0.5, 0.75), (0.1, 0.99)])
    made._validate = lambda: next(figures)  # type: ignore[method-assign]
    made.train(1e9)
    assert (made.progress.step, made.progress.best_step) == (4, 2)


@pytest.mark.slow
def test_a_non_finite_loss_names_step_and_patches(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=3)
    step = made._step

    def broken(number: int, *args: object) -> Callable[[], torch.Tensor]:
        loss = step(number, *args)
        return lambda: loss() * (float("nan") if number == 1 else 1)

    made._step = broken  # type: ignore[method-assign]
    with pytest.raises(
        ModelError,
        match=r"the loss is nan at step 1, with patches of s \(\d+00, 0\), .* and 4 more; .*checkpoint\.pt\. Lower",
    ):
        made.train(0.0)
    assert Checkpoints(tmp_path).load("", torch.device("cpu"))["step"] == 1


def test_a_batch_that_exceeds_the_memory_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path)
    monkeypatch.setattr("wsi_pipeline.model.device.Device.free_gib", lambda _: 1.25)

    def full(*_: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made, "_augmented", full)
    with pytest.raises(
        ModelError, match=r"8 patches does not fit the GPU \(1\.2 GiB are free\)\. Lower training\.batch_size"
    ):
        made.train(1e9)


def test_dropout_depends_on_seed_and_step_alone() -> None:
    mask = dropout_mask(50, 1, 7)
    assert mask.unique().tolist() == [0, 2]
    assert mask.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(mask, dropout_mask(50, 1, 7))
    assert not torch.equal(mask, dropout_mask(50, 1, 8))
    network = InceptionV3(2).eval()
    x = torch.rand(2, 3, 75, 75)
    with torch.inference_mode():
        assert torch.equal(network(x), network(x, torch.ones(2, 2048)))
        assert torch.equal(network(x, torch.zeros(2, 2048)), network.fc.bias.expand(2, 2))


def test_stain_augmentation_changes_the_concentrations_by_the_draws() -> None:
    stains = np.array(_STAINS) / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    amounts = np.array([0.8, 0.4, 0.0])
    unit = torch.from_numpy(np.exp(-amounts @ stains)).float().view(1, 3, 1, 1).expand(2, 3, 4, 4)
    same = jitter_stains(unit, np.zeros((4, 2)))
    torch.testing.assert_close(same, unit, atol=1e-6, rtol=0)
    # First image: haematoxylin up by a half. Second image: eosin down by a quarter, plus a fifth of 0.5.
    changed = jitter_stains(unit, np.array([[0.5, 0], [0, -0.25], [0, 0], [0, 0.5]]))
    found = -np.log(changed[:, :, 0, 0].numpy()) @ np.linalg.inv(stains)
    np.testing.assert_allclose(found, [[1.2, 0.4, 0], [0.8, 0.3 + 0.1, 0]], atol=1e-5)
    assert AugmentationDraws.draw(3, 1, 2).stains.shape == (4, 3)
