"""Stage train: Inception-v3 learns to tell tumour patches from normal ones."""

from __future__ import annotations

import csv
import io
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from wsi_pipeline import __version__
from wsi_pipeline.config import CLASSES, TrainRun
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import digest_file, digest_json
from wsi_pipeline.io.receipts import Facts, read_receipt
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import PatchDataset
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.distributed import init_distributed
from wsi_pipeline.model.model_dir import (
    ModelMetadata,
    initial_network,
    load_network,
    read_model_json,
    save_weights,
    write_model_json,
)
from wsi_pipeline.model.trainer import HistoryRow, Trainer
from wsi_pipeline.model.training_log import TrainingLog, short
from wsi_pipeline.plots.figures import patch_grid, save_figure, training_curves
from wsi_pipeline.provenance.versions import git_commit, package_versions

log = logging.getLogger(__name__)

HISTORY_COLUMNS = ("step", "patches", "learning_rate", "train_loss", "validation_loss", "validation_auc")
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class PatchSet:
    """The patches of some slides: stores, indices and receipts in the same order."""

    stores: Sequence[Path]
    indices: Sequence[Path]
    receipts: Sequence[Path]

    @classmethod
    def of(cls, receipts: Sequence[Path]) -> PatchSet:
        """Patches by their receipts; the store and the index lie beside each."""
        return cls([r.with_suffix(".zarr") for r in receipts], [r.with_suffix(".parquet") for r in receipts], receipts)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What training writes: `last` has the weights after the last step, `augmented` a picture of some patches."""

    weights: Path
    last: Path
    receipt: Path
    history: Path
    curves: Path
    augmented: Path

    @classmethod
    def of(cls, folder: Path) -> Outputs:
        """A model folder."""
        return cls(
            folder / "weights.safetensors",
            folder / "last.safetensors",
            folder / "model.json",
            folder / "history.csv",
            folder / "curves.png",
            folder / "augmented.png",
        )


def run(
    training: PatchSet,
    validation: PatchSet,
    outputs: Outputs,
    checkpoints: Path,
    options: TrainRun,
    *,
    imagenet: Path | None = None,
    go_on_from: Path | None = None,
    memory_gib: float = 4.0,
    workers: int = 2,
    checkpoint_minutes: float = 10.0,
    events: Path | None = None,
    synthetic: bool = False,
) -> None:
    """Train and write the model folder. Resumes from `checkpoints` where one fits these inputs.

    Raises `StoppedError` on SIGTERM, SIGINT and SIGUSR1, once the checkpoint is written.
    """
    facts = [read_patch_receipt(path) for path in (*training.receipts, *validation.receipts)]
    made_for = _made_for(facts)
    device = pick_device(options.cpu_threads, options.precision)
    distributed = init_distributed()
    # What the job has, all of its processes share.
    memory_gib, workers = memory_gib / distributed.world_size, max(1, workers // distributed.world_size)
    dataset = PatchDataset(training.stores, training.indices, memory_gib=memory_gib, workers=workers)
    _check_classes(dataset)
    held_out = PatchDataset(validation.stores, validation.indices, memory_gib=memory_gib, workers=workers)
    start = options.start if go_on_from is None else str(go_on_from)
    network = initial_network(start, len(CLASSES), options.seed, imagenet, auxiliary=options.auxiliary_weight > 0)
    described = {
        "options": options.model_dump(mode="json"),
        "device": device.kind,
        "dtype": device.precision,
        "went_on_from": None if go_on_from is None else digest_file(go_on_from),
    }
    inputs = digest_json({**described, "patches": facts})
    kept = Checkpoints(checkpoints)
    training_log = TrainingLog(enabled=distributed.is_main, events=events)
    trainer = Trainer(
        network,
        dataset,
        held_out,
        options,
        device,
        kept,
        inputs,
        distributed=distributed,
        workers=workers,
        training_log=training_log,
    )
    if distributed.is_main:
        _show(trainer, outputs.augmented, training_log, synthetic)
    try:
        with _stopped_by(trainer.stop):
            trainer.train(checkpoint_minutes * 60)
    finally:
        training_log.close()
    if distributed.is_main:
        model = {
            "training": {"slides": len(training.stores), **_class_counts(dataset)},
            "validation": {"slides": len(validation.stores), **_class_counts(held_out)},
            "patches_sha256": [[one["stage"], one["slide"], one.get("store_sha256")] for one in facts],
            **described,
            "processes": distributed.world_size,
            "versions": {
                "wsi_pipeline": __version__,
                **package_versions(),
                "torch": torch.__version__,
                "commit": git_commit(),
            },
        }
        _write(trainer, outputs, made_for, model, options, synthetic)
        kept.remove()
    distributed.close()


def read_patch_receipt(path: Path) -> Facts:
    """The receipt of the stage patches, or of the stage negatives, beside whose stores it lies."""
    return read_receipt(path, "patches" if path.name == "patches.json" else "negatives")


def take(source: Path, outputs: Outputs, *, size_px: int, mpp: float) -> None:
    """Take trained weights as they are. `model.json` beside them says scale and size, else the arguments do."""
    described = source.with_name("model.json")
    known = read_model_json(described) if described.is_file() else ModelMetadata(size_px, mpp, CLASSES, "")
    network = load_network(source, known)
    digest = save_weights(outputs.weights, network.state_dict())
    write_model_json(outputs.receipt, replace(known, weights_sha256=digest), taken=True)
    log.info("took trained weights %s (%d px at %g um per pixel)", digest[:12], known.size_px, known.mpp)


@contextmanager
def _stopped_by(stop: Callable[[], None]) -> Iterator[None]:
    """Signals that ask to end call `stop`; a second Ctrl-C ends at once."""

    def handle(number: int, _: FrameType | None) -> None:
        log.info("%s: a checkpoint is written after this step", signal.Signals(number).name)
        # At a time limit SLURM sends SIGTERM more than once, and has to wait all the same.
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])
        stop()

    before = {number: signal.signal(number, handle) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(trainer: Trainer, path: Path, training_log: TrainingLog, synthetic: bool) -> None:
    rows = [(row.permute(0, 2, 3, 1) * 255).round().byte().numpy() for row in trainer.augmentation_examples()]
    save_figure(patch_grid(rows, ("as stored", "as trained on"), synthetic), path)
    training_log.image(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))


def _write(
    trainer: Trainer, outputs: Outputs, facts: ModelMetadata, model: dict[str, Any], options: TrainRun, synthetic: bool
) -> None:
    progress = trainer.progress
    kept_step = progress.best_step if trainer.keeps_best else progress.step
    save_weights(outputs.last, trainer.last_state())
    digest = save_weights(outputs.weights, trainer.selected_state())
    write_text(outputs.history, history_csv(progress.history))
    save_figure(training_curves(progress.history, synthetic), outputs.curves)
    write_model_json(
        outputs.receipt, replace(facts, weights_sha256=digest), steps=progress.step, kept_step=kept_step, **model
    )
    kept = next(row for row in progress.history if row["step"] == kept_step)
    log.info(
        "%s: %d steps, kept step %d with validation loss %s, AUC %s",
        options.model,
        progress.step,
        kept_step,
        short(kept["validation_loss"]),
        short(kept["validation_auc"]),
    )


def _made_for(facts: Sequence[Facts]) -> ModelMetadata:
    """What the patches have in common."""
    first = facts[0]
    for other in facts[1:]:
        if _kind(first) != _kind(other):
            raise PipelineError(
                f"patches of {other['slide']} and {first['slide']} differ in size, border, scale or stains",
                remedy="Run the stage patches again for all slides",
            )
    options = first["options"]
    normalisation = options.get("stain_normalisation", "none")
    return ModelMetadata(int(first["size_px"]), float(options["mpp"]), CLASSES, "", normalisation)


def _kind(facts: Facts) -> tuple[object, ...]:
    options = facts["options"]
    return facts["size_px"], facts["border_px"], options["mpp"], options.get("stain_normalisation", "none")


def _check_classes(dataset: PatchDataset) -> None:
    for label, name in enumerate(CLASSES):
        if not (dataset.labels == label).any():
            raise PipelineError(
                f"the training slides have no {name} patches",
                remedy="Lower patches.min_tissue or patches.min_tumor, or check the masks and annotations",
            )


def _class_counts(dataset: PatchDataset) -> dict[str, int]:
    return {name: int((dataset.labels == label).sum()) for label, name in enumerate(CLASSES)}


def history_csv(rows: Sequence[HistoryRow]) -> str:
    """The history as CSV; empty cells where there is no validation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()
