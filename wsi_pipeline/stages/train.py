"""Stage train: Inception-v3 learns to tell tumour patches from normal ones.

Every draw is a function of (seed, step), so a training that was stopped goes on from its last
checkpoint as if nothing had happened.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsi_pipeline.config import CLASSES, TrainingRun
from wsi_pipeline.errors import ModelError, PipelineError
from wsi_pipeline.figures import training_curves
from wsi_pipeline.files import digest_json, publish, write_text
from wsi_pipeline.metrics.curves import Histogram, auc
from wsi_pipeline.model.augment import augment, centred, jittered, to_input, to_unit
from wsi_pipeline.model.bank import BalancedSampler, PatchBank
from wsi_pipeline.model.device import Device, pick_device
from wsi_pipeline.model.folder import (
    ModelFacts,
    load_network,
    read_model_json,
    save_weights,
    starting_network,
    write_model_json,
)
from wsi_pipeline.model.inception import InceptionV3
from wsi_pipeline.receipts import Facts, read_receipt

log = logging.getLogger(__name__)

_LOG_SECONDS = 30.0
_READ_AHEAD = 4
HISTORY_COLUMNS = ("step", "patches", "train_loss", "validation_loss", "validation_auc")

HistoryRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PatchSet:
    """The patches of some slides: stores, indices and receipts in the same order."""

    stores: Sequence[Path]
    indices: Sequence[Path]
    receipts: Sequence[Path]

    @classmethod
    def of(cls, receipts: Sequence[Path]) -> PatchSet:
        """Patches by their receipts `patches.json`; the store and the index lie beside them."""
        return cls([r.with_suffix(".zarr") for r in receipts], [r.with_suffix(".parquet") for r in receipts], receipts)


@dataclass(slots=True)
class Progress:
    """What a checkpoint holds beside network and optimizer."""

    step: int = 0
    history: list[HistoryRow] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    # Validation AUC (-1 where a class is missing) and negative loss of the best weights so far.
    best_score: list[float] = field(default_factory=lambda: [-1.0, float("-inf")])
    best_step: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)


def run(
    training: PatchSet,
    validation: PatchSet,
    weights: Path,
    receipt: Path,
    history: Path,
    curves: Path,
    checkpoints: Path,
    options: TrainingRun,
    *,
    imagenet: Path | None = None,
    memory_gib: float = 4.0,
    checkpoint_minutes: float = 10.0,
) -> None:
    """Train and write the model folder. Resumes from `checkpoints` where it fits these inputs."""
    facts = [read_receipt(path, "patches") for path in (*training.receipts, *validation.receipts)]
    size_px, mpp = _common_geometry(facts)
    device = pick_device(options.cpu_threads)
    bank = PatchBank(training.stores, training.indices, memory_gib=memory_gib)
    _check_classes(bank)
    held_out = PatchBank(validation.stores, validation.indices, memory_gib=memory_gib)
    network = starting_network(options.start, len(CLASSES), options.seed, imagenet).to(device.device)
    inputs = digest_json({"options": options.model_dump(mode="json"), "patches": facts, "device": device.kind})
    trainer = Trainer(network, bank, held_out, options, device, checkpoints / "checkpoint.pt", inputs)
    trainer.train(checkpoint_minutes * 60)
    progress = trainer.progress
    kept_step = progress.best_step if trainer.keeps_best else trainer.steps
    digest = save_weights(weights, trainer.final_state())
    write_text(history, history_csv(progress.history))
    with publish(curves) as partial:
        training_curves(progress.history).savefig(partial, format="png")
    write_model_json(
        receipt,
        ModelFacts(size_px, mpp, CLASSES, digest),
        options=options.model_dump(mode="json"),
        steps=trainer.steps,
        kept_step=kept_step,
        training={"slides": len(training.stores), **_class_counts(bank)},
        validation={"slides": len(validation.stores), **_class_counts(held_out)},
        patches_sha256=digest_json(facts),
    )
    kept = next(row for row in progress.history if row["step"] == kept_step)
    log.info(
        "%s: %d steps, kept step %d with validation loss %s, AUC %s",
        options.model, trainer.steps, kept_step, _short(kept["validation_loss"]), _short(kept["validation_auc"]),
    )  # fmt: skip


def take(source: Path, weights: Path, receipt: Path, *, size_px: int, mpp: float) -> None:
    """Take trained weights as they are. `model.json` beside them says scale and size, else the arguments do."""
    described = source.with_name("model.json")
    if described.is_file():
        known = read_model_json(described)
        size_px, mpp, classes = known.size_px, known.mpp, known.classes
    else:
        classes = CLASSES
    network = load_network(source, ModelFacts(size_px, mpp, classes, ""))
    digest = save_weights(weights, network.state_dict())
    write_model_json(receipt, ModelFacts(size_px, mpp, classes, digest), taken=True)
    log.info("took trained weights %s (%d px at %g um per pixel)", digest[:12], size_px, mpp)


class Trainer:
    """The training loop; `progress` says where it is."""

    def __init__(
        self,
        network: InceptionV3,
        bank: PatchBank,
        held_out: PatchBank,
        options: TrainingRun,
        device: Device,
        checkpoint: Path,
        inputs: str,
    ) -> None:
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._bank, self._held_out, self._options, self._device = bank, held_out, options, device
        self._checkpoint, self._inputs = checkpoint, inputs
        self._sampler = BalancedSampler(bank, options.seed, len(CLASSES))
        self._optimizer = torch.optim.RMSprop(
            network.parameters(),
            lr=options.learning_rate,
            alpha=options.squared_gradient_decay,
            eps=options.epsilon,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        planned = max(1, round(options.epochs * len(bank) / options.batch_size))
        self.steps = min(planned, options.max_steps or planned)
        self.keeps_best = options.keep == "best" and len(held_out) > 0
        self.progress = Progress()

    def train(self, checkpoint_seconds: float) -> None:
        """Train to the last step."""
        self._resume()
        started = saved = logged = time.monotonic()
        first = self.progress.step
        steps = iter(range(first, self.steps))
        index = (self._sampler.batch(step, self._options.batch_size) for step in steps)
        for picked, pixels in self._bank.batches(index, _READ_AHEAD):
            loss = self._step(pixels, self._bank.labels[picked])
            self.progress.losses.append(loss)
            self.progress.step += 1
            if self.progress.step % self._options.validate_every == 0 or self.progress.step == self.steps:
                self._record()
            now = time.monotonic()
            if now - saved > checkpoint_seconds:
                self._save()
                saved = now
            if now - logged > _LOG_SECONDS:
                rate = (self.progress.step - first) / (now - started)
                self._log(rate, loss)
                logged = now
        self._checkpoint.unlink(missing_ok=True)

    def final_state(self) -> dict[str, Tensor]:
        """The weights to keep."""
        return self.progress.best_state if self.keeps_best else self._network.state_dict()

    def _step(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        step, options, device = self.progress.step, self._options, self._device
        # Dropout draws from torch's own generator.
        torch.manual_seed(options.seed * 1_000_003 + step)
        self._network.train()
        pixels = jittered(pixels, self._bank.border_px, options.seed, step)
        unit = augment(to_unit(pixels, device.device), options.augmentation, options.seed, step)
        with device.autocast():
            logits = self._network(to_input(unit))
        loss = F.cross_entropy(logits.float(), torch.from_numpy(labels).to(device.device))
        value = loss.item()
        if not np.isfinite(value):
            raise ModelError(f"the loss is {value} at step {step}", remedy="Lower training.learning_rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return value

    def _record(self) -> None:
        progress = self.progress
        loss, area = self._validate()
        progress.history.append(
            {
                "step": progress.step,
                "patches": progress.step * self._options.batch_size,
                "train_loss": float(np.mean(progress.losses)),
                "validation_loss": loss,
                "validation_auc": area,
            }
        )
        progress.losses = []
        log.info(
            "step %d: training loss %.4f, validation loss %s, AUC %s",
            progress.step, progress.history[-1]["train_loss"], _short(loss), _short(area),
        )  # fmt: skip
        score = [-1.0 if area is None else area, -(loss or 0.0)]
        if self.keeps_best and score > progress.best_score:
            progress.best_score, progress.best_step = score, progress.step
            state = self._network.state_dict()
            progress.best_state = {name: tensor.detach().clone().cpu() for name, tensor in state.items()}

    def _validate(self) -> tuple[float | None, float | None]:
        count = min(len(self._held_out), self._options.validation_patches)
        if not count:
            return None, None
        chosen = np.linspace(0, len(self._held_out) - 1, count).round().astype(np.int64)
        size = self._options.batch_size
        parts = (chosen[start : start + size] for start in range(0, count, size))
        self._network.eval()
        logits: list[Tensor] = []
        with torch.inference_mode(), self._device.autocast():
            for _, pixels in self._held_out.batches(parts, _READ_AHEAD):
                unit = to_unit(centred(pixels, self._held_out.border_px), self._device.device)
                logits.append(self._network(to_input(unit)).float().cpu())
        all_logits, labels = torch.cat(logits), self._held_out.labels[chosen]
        loss = F.cross_entropy(all_logits, torch.from_numpy(labels)).item()
        scores = all_logits.softmax(1)[:, CLASSES.index("tumor")].numpy()
        return loss, auc(Histogram.of(scores, labels == CLASSES.index("tumor")))

    def _log(self, steps_a_second: float, loss: float) -> None:
        left = (self.steps - self.progress.step) / steps_a_second
        images = steps_a_second * self._options.batch_size
        log.info(
            "step %d of %d, %.1f patches/s, %.0f min left, loss %.4f",
            self.progress.step, self.steps, images, left / 60, loss,
        )  # fmt: skip

    def _save(self) -> None:
        progress = self.progress
        content = {
            "inputs": self._inputs,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progress": {name: getattr(progress, name) for name in Progress.__slots__},
        }
        with publish(self._checkpoint) as partial:
            torch.save(content, partial)

    def _resume(self) -> None:
        if not self._checkpoint.is_file():
            return
        try:
            content = torch.load(self._checkpoint, map_location=self._device.device, weights_only=True)
        except Exception as error:  # noqa: BLE001 (any damage means the same: start again)
            log.warning("%s: damaged (%s), training starts again", self._checkpoint, error)
            return
        if content["inputs"] != self._inputs:
            log.info("%s: of other inputs, training starts again", self._checkpoint)
            return
        self._network.load_state_dict(content["network"])
        self._optimizer.load_state_dict(content["optimizer"])
        self.progress = Progress(**content["progress"])
        log.info("going on from step %d", self.progress.step)


def _common_geometry(facts: Sequence[Facts]) -> tuple[int, float]:
    first = facts[0]
    for other in facts[1:]:
        kinds = [(one["size_px"], one["border_px"], one["options"]["mpp"]) for one in (first, other)]
        if kinds[0] != kinds[1]:
            raise PipelineError(
                f"patches of {other['slide']} and {first['slide']} differ in size, border or scale",
                remedy="Run the stage patches again for all slides",
            )
    return int(first["size_px"]), float(first["options"]["mpp"])


def _check_classes(bank: PatchBank) -> None:
    for label, name in enumerate(CLASSES):
        if not (bank.labels == label).any():
            raise PipelineError(
                f"the training slides have no {name} patches",
                remedy="Lower patches.min_tissue or patches.min_tumor, or check the masks and annotations",
            )


def _class_counts(bank: PatchBank) -> dict[str, int]:
    return {name: int((bank.labels == label).sum()) for label, name in enumerate(CLASSES)}


def history_csv(rows: Sequence[HistoryRow]) -> str:
    """The history as CSV; empty cells where there is no validation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
