from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from wsi_pipeline import patch_store
from wsi_pipeline.codecs import Lossless
from wsi_pipeline.config import AugmentationOptions, TrainingRun
from wsi_pipeline.errors import ModelError, PipelineError
from wsi_pipeline.files import canonical_json
from wsi_pipeline.geometry import Size
from wsi_pipeline.model.augment import augment, centred, jittered, oriented
from wsi_pipeline.model.bank import BalancedSampler, PatchBank
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.download import download_imagenet
from wsi_pipeline.model.folder import read_imagenet, read_model_json, read_weights, starting_network
from wsi_pipeline.model.inception import InceptionV3
from wsi_pipeline.stages import train
from wsi_pipeline.stages.train import PatchSet, Trainer

EDGE = 75


def write_patches(folder: Path, labels: list[int], *, size_px: int = EDGE, seed: int = 0) -> Path:
    """Patches of a slide: tumour has coarse blobs, normal fine ones, of the same mean."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((len(labels), size_px, size_px, 3), np.uint8)
    for k, label in enumerate(labels):
        cell = 15 if label else 3
        coarse = rng.integers(60, 220, (-(-size_px // cell),) * 2)
        pixels[k] = np.kron(coarse, np.ones((cell, cell)))[:size_px, :size_px, None]
    folder.mkdir(parents=True)
    codec = Lossless(Size(size_px, size_px))
    patch_store.write_patches(
        folder / "patches.zarr", len(labels), size_px, 0, codec, lambda start, stop: pixels[start:stop], 1
    )
    pq.write_table(pa.table({"label": np.array(labels, np.int8)}), folder / "patches.parquet")
    receipt = folder / "patches.json"
    facts = {"stage": "patches", "slide": folder.name, "size_px": size_px, "border_px": 0, "options": {"mpp": 0.5}}
    receipt.write_text(canonical_json({**facts, "seed": seed}))
    return receipt


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchSet, PatchSet]:
    root = tmp_path_factory.mktemp("patches")
    training = [
        write_patches(root / "n", [0] * 12, seed=1),
        write_patches(root / "t", [1] * 5 + [0] * 3, seed=2),
        write_patches(root / "empty", [], seed=3),
    ]
    return PatchSet.of(training), PatchSet.of([write_patches(root / "v", [0, 1] * 5, seed=4)])


OPTIONS = TrainingRun(
    start="random", batch_size=8, max_steps=6, epochs=100, validate_every=2, learning_rate=1e-3, cpu_threads=1
)  # fmt: skip


def run(sets: tuple[PatchSet, PatchSet], out: Path, options: TrainingRun = OPTIONS, **more: object) -> Path:
    train.run(
        *sets, out / "weights.safetensors", out / "model.json", out / "history.csv", out / "curves.png",
        out / "checkpoints", options, **more,
    )  # fmt: skip
    return out / "weights.safetensors"


def test_it_learns_and_describes_what_it_made(sets: tuple[PatchSet, PatchSet], tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"max_steps": 24, "validate_every": 12})
    weights = run(sets, tmp_path, options)
    rows = [line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines()]
    assert rows[0] == ["step", "patches", "train_loss", "validation_loss", "validation_auc"]
    assert [row[0] for row in rows[1:]] == ["12", "24"]
    assert float(rows[-1][2]) < float(rows[1][2])
    assert float(rows[-1][4]) > 0.9
    facts = read_model_json(tmp_path / "model.json")
    assert (facts.size_px, facts.mpp, facts.classes) == (EDGE, 0.5, ("normal", "tumor"))
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["training"] == {"slides": 3, "normal": 15, "tumor": 5}
    assert load_file(weights).keys() == InceptionV3(2).state_dict().keys()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_an_interrupted_training_ends_with_the_same_weights(
    sets: tuple[PatchSet, PatchSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(run(sets, tmp_path / "whole"))
    step = Trainer._step

    def stop_at_3(self: Trainer, *args: object) -> float:
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", stop_at_3)
    with pytest.raises(KeyboardInterrupt):
        run(sets, tmp_path / "cut", checkpoint_minutes=0)
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    monkeypatch.undo()
    steps = []
    monkeypatch.setattr(Trainer, "_step", lambda self, *a: steps.append(self.progress.step) or step(self, *a))
    resumed = load_file(run(sets, tmp_path / "cut"))
    assert steps == [3, 4, 5]
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_damaged_checkpoint_and_one_of_other_inputs_are_not_used(
    sets: tuple[PatchSet, PatchSet], tmp_path: Path
) -> None:
    clean = load_file(run(sets, tmp_path / "a"))
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut off")
    again = load_file(run(sets, tmp_path / "b"))
    assert all(torch.equal(clean[name], again[name]) for name in clean)


def test_reading_from_disk_gives_the_same_weights(sets: tuple[PatchSet, PatchSet], tmp_path: Path) -> None:
    in_memory = load_file(run(sets, tmp_path / "a"))
    from_disk = load_file(run(sets, tmp_path / "b", memory_gib=0))
    assert all(torch.equal(in_memory[name], from_disk[name]) for name in in_memory)


def test_draws_are_balanced_and_depend_on_seed_and_step_alone(sets: tuple[PatchSet, PatchSet]) -> None:
    bank = PatchBank(sets[0].stores, sets[0].indices)
    sampler = BalancedSampler(bank, 1, 2)
    picked = np.concatenate([sampler.batch(step, 50) for step in range(40)])
    assert bank.labels[picked].mean() == pytest.approx(0.5, abs=0.04)
    normal = picked[bank.labels[picked] == 0]
    assert (bank.slides[normal] == 0).mean() == pytest.approx(0.5, abs=0.06)
    assert sampler.batch(7, 50).tolist() == BalancedSampler(bank, 1, 2).batch(7, 50).tolist()
    assert sampler.batch(7, 50).tolist() != BalancedSampler(bank, 2, 2).batch(7, 50).tolist()


def test_the_eight_orientations_are_all_different() -> None:
    picture = torch.arange(12.0).reshape(1, 3, 2, 2).repeat(8, 1, 1, 1)
    out = oriented(picture, np.arange(8))
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8
    assert torch.equal(out[0], picture[0])


def test_augmentation_repeats_and_can_be_off() -> None:
    unit = torch.rand(4, 3, 20, 20)
    options = AugmentationOptions()
    assert torch.equal(augment(unit.clone(), options, 1, 5), augment(unit.clone(), options, 1, 5))
    assert not torch.equal(augment(unit.clone(), options, 1, 5), augment(unit.clone(), options, 1, 6))
    off = AugmentationOptions(orientations=False, brightness=0, contrast=0, saturation=0, hue=0)
    torch.testing.assert_close(augment(unit.clone(), off, 1, 5), unit, atol=1e-5, rtol=0)


def test_one_class_alone_is_an_error(tmp_path: Path) -> None:
    only_normal = PatchSet.of([write_patches(tmp_path / "n", [0, 0])])
    with pytest.raises(PipelineError, match=r"no tumor patches.*patches\.min_tissue"):
        run((only_normal, PatchSet.of([])), tmp_path)


def test_patches_of_different_sizes_are_an_error(tmp_path: Path) -> None:
    mixed = PatchSet.of([write_patches(tmp_path / "a", [0, 1]), write_patches(tmp_path / "b", [0], size_px=80)])
    with pytest.raises(PipelineError, match="patches of b and a differ"):
        run((mixed, PatchSet.of([])), tmp_path)


def test_trained_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "theirs.safetensors"
    state = InceptionV3(2).state_dict()
    save_file(state, source)
    train.take(source, tmp_path / "weights.safetensors", tmp_path / "model.json", size_px=96, mpp=1.0)
    taken = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(taken[name], tensor) for name, tensor in state.items())
    facts = read_model_json(tmp_path / "model.json")
    assert (facts.size_px, facts.mpp) == (96, 1.0)


def test_weights_that_do_not_fit_name_the_first_difference(tmp_path: Path) -> None:
    state = InceptionV3(2).state_dict()
    del state["Mixed_5b.branch1x1.conv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"Mixed_5b\.branch1x1\.conv\.weight is not in the weights"):
        train.take(tmp_path / "w.safetensors", tmp_path / "o", tmp_path / "m.json", size_px=96, mpp=1.0)
    save_file(InceptionV3(3).state_dict(), tmp_path / "w3.safetensors")
    with pytest.raises(ModelError, match=r"fc\.bias is \(3,\), but the network has \(2,\)"):
        train.take(tmp_path / "w3.safetensors", tmp_path / "o", tmp_path / "m.json", size_px=96, mpp=1.0)


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"fc.weight": [1, 2]}))
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_weights(path)


def test_imagenet_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no file was given.*training\.weights_file"):
        starting_network("imagenet", 2, 1, None)
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    state = InceptionV3(1000, auxiliary=True).state_dict()
    torch.save(state, path)
    with pytest.raises(ModelError, match="begin with 0cc3c7bd"):
        read_imagenet(path)
    monkeypatch.setattr("wsi_pipeline.model.imagenet.IMAGENET_SHA256_PREFIX", "")
    network = starting_network("imagenet", 2, 1, path)
    own = network.state_dict()
    assert torch.equal(own["Mixed_7c.branch1x1.conv.weight"], state["Mixed_7c.branch1x1.conv.weight"])
    assert own["fc.weight"].shape == (2, 2048)


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "weights.pth"
    with pytest.raises(ModelError, match="cannot be downloaded"):
        download_imagenet(target, "http://127.0.0.1:9/weights.pth")
    with pytest.raises(ModelError, match="not an https address"):
        download_imagenet(target, "file:///etc/passwd")
    assert list(tmp_path.iterdir()) == []


def test_the_best_weights_are_kept_or_the_last(sets: tuple[PatchSet, PatchSet], tmp_path: Path) -> None:
    bank, held_out = (PatchBank(s.stores, s.indices) for s in sets)

    def trained(keep: str) -> Trainer:
        options = OPTIONS.model_copy(update={"keep": keep, "max_steps": 3, "validate_every": 1})
        network = starting_network("random", 2, 1, None)
        trainer = Trainer(network, bank, held_out, options, pick_device(1), tmp_path / "c.pt", "")
        figures = iter([(0.5, 0.7), (0.9, 0.8), (0.4, 0.8)] if keep == "best" else [(0.1, 0.9), (0.5, 0.7), (1.0, 0.6)])
        trainer._validate = lambda: next(figures)  # type: ignore[method-assign]
        trainer.train(1e9)
        return trainer

    # Of loss and AUC (0.5, 0.7), (0.9, 0.8), (0.4, 0.8) the last is best: the highest AUC, then the lower loss.
    best = trained("best")
    assert (best.progress.best_step, best.progress.best_score) == (3, [0.8, -0.4])
    last = trained("last")
    assert last.progress.best_state == {}
    assert torch.equal(last.final_state()["fc.weight"], last._network.fc.weight)


def test_patches_move_within_their_border_by_draws_of_their_own() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 15, 15, 3), np.uint8)
    one = jittered(pixels, 3, seed=1, step=5)
    assert one.shape == (200, 9, 9, 3)
    np.testing.assert_array_equal(one, jittered(pixels, 3, seed=1, step=5))
    assert not np.array_equal(one, jittered(pixels, 3, seed=1, step=6))
    places = {
        (y, x)
        for patch, moved in zip(pixels, one, strict=True)
        for y in range(7)
        for x in range(7)
        if np.array_equal(patch[y : y + 9, x : x + 9], moved)
    }
    assert len(places) > 40
    assert jittered(pixels, 0, seed=1, step=5) is pixels
    np.testing.assert_array_equal(centred(pixels, 3), pixels[:, 3:12, 3:12])


def test_patches_with_a_border_train_at_their_own_size(tmp_path: Path) -> None:
    receipts = [write_patches(tmp_path / name, [0, 1] * 6, size_px=91, seed=k) for k, name in enumerate("ab")]
    for receipt in receipts:
        facts = json.loads(receipt.read_text()) | {"size_px": 75, "border_px": 8}
        receipt.write_text(canonical_json(facts))
        metadata = receipt.with_name("patches.zarr") / "zarr.json"
        metadata.write_text(metadata.read_text().replace('"border_px": 0', '"border_px": 8'))
    sets = PatchSet.of(receipts[:1]), PatchSet.of(receipts[1:])
    run(sets, tmp_path)
    model = read_model_json(tmp_path / "model.json")
    assert model.size_px == 75
    other = write_patches(tmp_path / "c", [0, 1], size_px=75)
    with pytest.raises(PipelineError, match="differ in size, border or scale"):
        run((PatchSet.of([receipts[0], other]), sets[1]), tmp_path)
