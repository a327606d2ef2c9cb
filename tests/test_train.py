from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from helpers.training import EDGE, OPTIONS, write_patches
from wsi_pipeline.config import AugmentationOptions, TrainRun
from wsi_pipeline.errors import ModelError, PipelineError, StoreError
from wsi_pipeline.io.digests import canonical_json
from wsi_pipeline.model.augment import (
    AugmentationDraws,
    augment,
    center_crops,
    orient_each,
    random_crops,
    to_input,
    to_unit,
)
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import GIB, BalancedSampler, PatchDataset, Prefetcher
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.imagenet import download_imagenet
from wsi_pipeline.model.inception import InceptionV3, initialize
from wsi_pipeline.model.model_dir import (
    ModelMetadata,
    initial_network,
    read_imagenet,
    read_model_json,
    read_weights,
    write_model_json,
)
from wsi_pipeline.model.patch_set import PatchSet
from wsi_pipeline.model.trainer import Trainer
from wsi_pipeline.pyramid.patch_store import PatchStore
from wsi_pipeline.stages import train
from wsi_pipeline.stages.train import Inputs, Outputs


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchSet, PatchSet]:
    root = tmp_path_factory.mktemp("patches")
    training = [
        write_patches(root / "n", [0] * 12, seed=1),
        write_patches(root / "t", [1] * 5 + [0] * 3, seed=2),
        write_patches(root / "empty", [], seed=3),
    ]
    return PatchSet(training), PatchSet([write_patches(root / "v", [0, 1] * 5, seed=4)])


def run(sets: tuple[PatchSet, PatchSet], out: Path, options: TrainRun = OPTIONS, **more: object) -> Path:
    training, validation = sets
    inputs = Inputs(training=tuple(training.receipts), validation=tuple(validation.receipts))
    train.run(inputs, Outputs.of(out), options, checkpoints=out / "checkpoints", **more)
    return out / "weights.safetensors"


@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_a_missing_store_is_named_with_its_receipt(tmp_path: Path, suffix: str) -> None:
    receipts = [write_patches(tmp_path / name, [0, 1] * 4, seed=1) for name in ("a", "b")]
    lost = receipts[1].with_suffix(suffix)
    if lost.is_dir():
        shutil.rmtree(lost)
    else:
        lost.unlink()
    with pytest.raises(StoreError) as caught:
        run((PatchSet(receipts), PatchSet([])), tmp_path / "m")
    assert str(caught.value).startswith(f"{lost}: missing, although its receipt is there. Delete {receipts[1]} and")
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("rendered_figures")
def test_training_reduces_the_loss_and_writes_the_model_folder(sets: tuple[PatchSet, PatchSet], tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"max_steps": 24, "validate_every": 12})
    weights = run(sets, tmp_path, options)
    rows = [line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines()]
    assert rows[0] == ["step", "patches", "learning_rate", "train_loss", "validation_loss", "validation_auc"]
    assert [row[0] for row in rows[1:]] == ["12", "24"]
    assert float(rows[-1][3]) < float(rows[1][3])
    assert float(rows[-1][5]) > 0.9
    facts = read_model_json(tmp_path / "model.json")
    assert (facts.size_px, facts.mpp, facts.classes) == (EDGE, 0.5, ("normal", "tumor"))
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["training"] == {"slides": 3, "normal": 15, "tumor": 5}
    assert load_file(weights).keys() == InceptionV3(2).state_dict().keys()
    assert described["versions"]["torch"] == torch.__version__
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "augmented.png").stat().st_size > 1000
    assert load_file(tmp_path / "last.safetensors").keys() == load_file(weights).keys()
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_the_validation_auc_of_a_confident_network_is_that_of_its_log_odds(
    sets: tuple[PatchSet, PatchSet], tmp_path: Path
) -> None:
    """Probabilities of 1 tie, so every model would be as good as any other, and the first one would be kept."""
    network = InceptionV3(2)
    initialize(network, 3)
    with torch.no_grad():
        network.fc.weight.normal_(std=1000, generator=torch.Generator().manual_seed(0))
        network.fc.bias[1] = 1e5
    save_file(network.state_dict(), tmp_path / "start.safetensors")
    options = OPTIONS.model_copy(update={"max_steps": 2, "learning_rate": 1e-12, "weight_decay": 0.0})
    training, validation = (tuple(part.receipts) for part in sets)
    inputs = Inputs(training=training, validation=validation, go_on_from=tmp_path / "start.safetensors")
    train.run(inputs, Outputs.of(tmp_path / "m"), options, checkpoints=tmp_path / "c")
    network.load_state_dict(load_file(tmp_path / "m" / "weights.safetensors"))
    patches = PatchDataset(sets[1].stores, sets[1].indices)
    pixels = torch.from_numpy(np.stack([patches.read(k) for k in range(len(patches))]))
    with torch.inference_mode():
        logits = network.eval()(to_input(to_unit(pixels, torch.device("cpu")))).double().numpy()
    odds = logits[:, 1] - logits[:, 0]
    assert odds.min() > 40
    row = (tmp_path / "m" / "history.csv").read_text().splitlines()[-1]
    wanted = roc_auc_score(patches.labels, odds)
    assert wanted != 0.5
    assert float(row.split(",")[-1]) == pytest.approx(wanted)


def test_patches_are_the_same_from_memory_streams_and_disk(
    sets: tuple[PatchSet, PatchSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = PatchDataset(sets[0].stores, sets[0].indices)
    disk = PatchDataset(sets[0].stores, sets[0].indices, memory_gib=0, workers=3)
    # Enough memory for the streams, but not for the pixels.
    between = sum(PatchStore(path).stored_bytes for path in sets[0].stores)
    assert between < len(pixels) * EDGE * EDGE * 3
    streams = PatchDataset(sets[0].stores, sets[0].indices, memory_gib=between / GIB)
    index = [np.array([3, 1, 19, 7]), np.array([0] * 40), np.array([5])]
    wanted = [np.stack([disk.read(k) for k in part]) for part in index]
    monkeypatch.setattr(PatchStore, "stream", None)
    for dataset, workers in ((pixels, 1), (streams, 3)):
        found = list(Prefetcher(dataset, index, workers=workers, ahead=2))
        for (own, batch), part, patches in zip(found, index, wanted, strict=True):
            assert own is part
            np.testing.assert_array_equal(batch.numpy(), patches)


def test_a_damaged_patch_is_named(tmp_path: Path) -> None:
    made = PatchSet([write_patches(tmp_path / "s", [0, 1] * 4)])
    (shard,) = (path for path in (tmp_path / "s" / "patches.zarr" / "c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[:200] = bytes(200)
    shard.write_bytes(content)
    dataset = PatchDataset(made.stores, made.indices, memory_gib=0)
    with pytest.raises(StoreError, match="patch 0 is damaged"):
        list(Prefetcher(dataset, [np.array([0, 1])], workers=2))


def test_batches_are_balanced_and_depend_only_on_seed_and_step(sets: tuple[PatchSet, PatchSet]) -> None:
    dataset = PatchDataset(sets[0].stores, sets[0].indices)
    sampler = BalancedSampler(dataset, 1, 2)
    picked = np.concatenate([sampler.batch(step, 50) for step in range(40)])
    assert dataset.labels[picked].mean() == pytest.approx(0.5, abs=0.04)
    normal = picked[dataset.labels[picked] == 0]
    assert (dataset.slides[normal] == 0).mean() == pytest.approx(0.5, abs=0.06)
    assert sampler.batch(7, 50).tolist() == BalancedSampler(dataset, 1, 2).batch(7, 50).tolist()
    assert sampler.batch(7, 50).tolist() != BalancedSampler(dataset, 2, 2).batch(7, 50).tolist()


def test_the_eight_orientations_are_all_different() -> None:
    picture = torch.arange(12.0).reshape(1, 3, 2, 2).repeat(8, 1, 1, 1)
    out = orient_each(picture, np.arange(8))
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8
    assert torch.equal(out[0], picture[0])


def test_augmentation_is_reproducible_and_can_be_off() -> None:
    unit = torch.rand(4, 3, 20, 20)
    options = AugmentationOptions()
    draws = AugmentationDraws.draw(4, 1, 5)
    changed = augment(unit.clone(), options, draws)
    assert torch.equal(changed, augment(unit.clone(), options, AugmentationDraws.draw(4, 1, 5)))
    assert not torch.equal(changed, augment(unit.clone(), options, AugmentationDraws.draw(4, 1, 6)))
    # A shard of a batch is augmented as within the whole batch.
    assert torch.equal(augment(unit[1:3].clone(), options, draws.subset(slice(1, 3))), changed[1:3])
    off = AugmentationOptions(orientations=False, brightness=0, contrast=0, saturation=0, hue=0)
    torch.testing.assert_close(augment(unit.clone(), off, draws), unit, atol=1e-5, rtol=0)


def test_a_single_class_is_an_error(tmp_path: Path) -> None:
    only_normal = PatchSet([write_patches(tmp_path / "n", [0, 0])])
    with pytest.raises(PipelineError, match=r"no tumor patches.*patches\.min_tissue"):
        run((only_normal, PatchSet([])), tmp_path)


def test_patches_of_different_sizes_are_an_error(tmp_path: Path) -> None:
    mixed = PatchSet([write_patches(tmp_path / "a", [0, 1]), write_patches(tmp_path / "b", [0], size_px=80)])
    with pytest.raises(PipelineError, match="patches of b and a differ"):
        run((mixed, PatchSet([])), tmp_path)


def test_given_weights_are_used_unchanged(tmp_path: Path) -> None:
    source = tmp_path / "theirs.safetensors"
    state = InceptionV3(2).state_dict()
    save_file(state, source)
    train.take_weights(source, Outputs.of(tmp_path), size_px=96, mpp=1.0)
    taken = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(taken[name], tensor) for name, tensor in state.items())
    facts = read_model_json(tmp_path / "model.json")
    assert (facts.size_px, facts.mpp) == (96, 1.0)


def test_weights_of_another_network_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    state = InceptionV3(2).state_dict()
    del state["Mixed_5b.branch1x1.conv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"Mixed_5b\.branch1x1\.conv\.weight is not in the weights"):
        train.take_weights(tmp_path / "w.safetensors", Outputs.of(tmp_path / "o"), size_px=96, mpp=1.0)
    save_file(InceptionV3(3).state_dict(), tmp_path / "w3.safetensors")
    with pytest.raises(ModelError, match=r"fc\.bias is \(3,\), but the network has \(2,\)"):
        train.take_weights(tmp_path / "w3.safetensors", Outputs.of(tmp_path / "o"), size_px=96, mpp=1.0)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"classes": ["benign", "malignant"]}, "none of the classes benign, malignant is tumor. Rename the class"),
        ({"size_px": "large"}, r"invalid value \(.*'large'\)\. Use the model\.json that training wrote"),
        ({"classes": None}, "invalid value"),
        ({"architecture": "resnet50"}, "architecture resnet50, not inception_v3"),
    ],
)
def test_an_invalid_model_json_is_refused(tmp_path: Path, changed: dict[str, object], error: str) -> None:
    path = tmp_path / "model.json"
    write_model_json(path, ModelMetadata(96, 1.0, ("normal", "tumor"), "0" * 64))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ModelError, match=rf"model\.json: {error}"):
        read_model_json(path)


def test_model_json_of_any_version_is_read(tmp_path: Path) -> None:
    """Given weights may have the model.json of an earlier version, or one with additional keys."""
    path = tmp_path / "model.json"
    write_model_json(path, ModelMetadata(96, 1.0, ("normal", "tumor"), "0" * 64))
    path.write_text(json.dumps({**json.loads(path.read_text()), "step_version": 1, "notes": "of the lab"}))
    assert read_model_json(path).size_px == 96


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"fc.weight": [1, 2]}))
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_weights(path)


def test_imagenet_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no file is given.*training\.weights_file"):
        initial_network("imagenet", 2, 1, None)
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    state = InceptionV3(1000, auxiliary=True).state_dict()
    torch.save(state, path)
    with pytest.raises(ModelError, match="begins with 0cc3c7bd"):
        read_imagenet(path)
    monkeypatch.setattr("wsi_pipeline.model.imagenet.IMAGENET_SHA256_PREFIX", "")
    network = initial_network("imagenet", 2, 1, path)
    own = network.state_dict()
    assert torch.equal(own["Mixed_7c.branch1x1.conv.weight"], state["Mixed_7c.branch1x1.conv.weight"])
    assert own["fc.weight"].shape == (2, 2048)


def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "weights.pth"
    with pytest.raises(ModelError, match="cannot be downloaded"):
        download_imagenet(target, "http://127.0.0.1:9/weights.pth")
    with pytest.raises(ModelError, match="not an https address"):
        download_imagenet(target, "file:///etc/passwd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_best_or_the_last_weights_are_selected(sets: tuple[PatchSet, PatchSet], tmp_path: Path) -> None:
    dataset, validation = (PatchDataset(s.stores, s.indices) for s in sets)

    def trained(keep: str) -> Trainer:
        options = OPTIONS.model_copy(update={"keep": keep, "max_steps": 3, "validate_every": 1})
        network = initial_network("random", 2, 1, None)
        trainer = Trainer(network, dataset, validation, options, pick_device(1), Checkpoints(tmp_path), "")
        figures = iter([(0.5, 0.7), (0.9, 0.8), (0.4, 0.8)] if keep == "best" else [(0.1, 0.9), (0.5, 0.7), (1.0, 0.6)])
        trainer._validate = lambda: next(figures)  # type: ignore[method-assign]
        trainer.train(1e9)
        return trainer

    # Of the losses and AUCs (0.5, 0.7), (0.9, 0.8), (0.4, 0.8) the last is best: highest AUC, then lowest loss.
    best = trained("best")
    assert (best.progress.best_step, best.progress.best_score) == (3, [0.8, -0.4])
    last = trained("last")
    assert last.progress.best_state == {}
    assert torch.equal(last.selected_state()["fc.weight"], last._network.fc.weight)


def test_each_patch_is_cropped_at_its_own_position() -> None:
    unit = torch.rand(200, 3, 15, 15)
    one = random_crops(unit, 3, AugmentationDraws.draw(200, 1, 5))
    assert one.shape == (200, 3, 9, 9)
    assert torch.equal(one, random_crops(unit, 3, AugmentationDraws.draw(200, 1, 5)))
    assert not torch.equal(one, random_crops(unit, 3, AugmentationDraws.draw(200, 1, 6)))
    places = {
        (y, x)
        for patch, moved in zip(unit, one, strict=True)
        for y in range(7)
        for x in range(7)
        if torch.equal(patch[:, y : y + 9, x : x + 9], moved)
    }
    assert len(places) > 40
    assert {y for y, _ in places} == {x for _, x in places} == set(range(7))
    assert random_crops(unit, 0, AugmentationDraws.draw(200, 1, 5)) is unit
    pixels = torch.arange(2 * 15 * 15 * 3).reshape(2, 15, 15, 3)
    assert torch.equal(center_crops(pixels, 3), pixels[:, 3:12, 3:12])


@pytest.mark.slow
def test_patches_with_a_border_are_trained_at_their_inner_size(tmp_path: Path) -> None:
    receipts = [write_patches(tmp_path / name, [0, 1] * 6, size_px=91, seed=k) for k, name in enumerate("ab")]
    for receipt in receipts:
        facts = json.loads(receipt.read_text()) | {"size_px": 75, "border_px": 8}
        receipt.write_text(canonical_json(facts))
        metadata = receipt.with_name("patches.zarr") / "zarr.json"
        metadata.write_text(metadata.read_text().replace('"border_px": 0', '"border_px": 8'))
    sets = PatchSet(receipts[:1]), PatchSet(receipts[1:])
    run(sets, tmp_path)
    model = read_model_json(tmp_path / "model.json")
    assert model.size_px == 75
    other = write_patches(tmp_path / "c", [0, 1], size_px=75)
    with pytest.raises(PipelineError, match="differ in size, border, scale or stain"):
        run((PatchSet([receipts[0], other]), sets[1]), tmp_path)
