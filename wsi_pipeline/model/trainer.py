"""The training loop.

All random draws are functions of (seed, step) alone, so a training resumed from a checkpoint equals an uninterrupted
one, with any number of reading threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from wsi_pipeline.config import CLASSES, TrainRun
from wsi_pipeline.errors import ModelError
from wsi_pipeline.metrics.curves import Histogram, auc
from wsi_pipeline.model.augment import AugmentationDraws, augment, center_crops, random_crops, to_input, to_unit
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import BalancedSampler, Index, PatchDataset, Prefetcher
from wsi_pipeline.model.device import Device, copy_to_cpu, to_device
from wsi_pipeline.model.distributed import DistributedContext
from wsi_pipeline.model.inception import MIN_AUXILIARY_PX, InceptionV3, dropout_mask
from wsi_pipeline.model.optimization import WeightAverage, learning_rate, make_optimizer
from wsi_pipeline.model.predictor import log_odds
from wsi_pipeline.model.training_log import HistoryRow, TrainingLog

log = logging.getLogger(__name__)

_TUMOR = CLASSES.index("tumor")
_SHOWN_PATCHES = 8

State = dict[str, Tensor]
# Number of a step, indices of its patches, and the call that waits for its result (see `Trainer._step`).
_PendingStep = tuple[int, Index, Callable[[], Tensor]]


class StoppedError(Exception):
    """The training was stopped on request, after writing a checkpoint."""


@dataclass(slots=True)
class Progress:
    """State of the loop, which a checkpoint holds beside network and optimizer.

    `losses` are those since the last validation.
    """

    step: int = 0
    history: list[HistoryRow] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    # Validation AUC (-1 where a class is missing) and negative loss of the best weights so far.
    best_score: list[float] = field(default_factory=lambda: [-1.0, float("-inf")])
    best_step: int = 0
    best_state: State = field(default_factory=dict)


class _SummedLoss(nn.Module):
    """Network and loss as one module, for DistributedDataParallel; the loss is summed over the patches given."""

    def __init__(self, network: InceptionV3, options: TrainRun) -> None:
        super().__init__()
        self.network, self._options = network, options

    def forward(self, x: Tensor, keep: Tensor, labels: Tensor) -> Tensor:
        weight = self._options.auxiliary_weight
        if not weight:
            return self._sum(self.network(x, keep), labels)
        logits, auxiliary = self.network.with_auxiliary(x, keep)
        return self._sum(logits, labels) + weight * self._sum(auxiliary, labels)

    def _sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self._options.label_smoothing
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


class Trainer:
    """Trains a network. `inputs` is the digest of all that affects the result; checkpoints of other inputs are ignored.

    Raises `ModelError` where the auxiliary head is to be trained on patches below 299 px.
    """

    def __init__(
        self,
        network: InceptionV3,
        dataset: PatchDataset,
        validation: PatchDataset,
        options: TrainRun,
        device: Device,
        checkpoints: Checkpoints,
        inputs: str,
        *,
        distributed: DistributedContext | None = None,
        workers: int = 4,
        training_log: TrainingLog | None = None,
    ) -> None:
        self._dataset, self._validation = dataset, validation
        self._options = options
        self._device = device
        self._checkpoints, self._inputs = checkpoints, inputs
        self._distributed = distributed or DistributedContext()
        self._log = training_log or TrainingLog()
        self._workers = workers
        size = dataset.edge_px - 2 * dataset.border_px
        if options.auxiliary_weight and size < MIN_AUXILIARY_PX:
            raise ModelError(
                f"the auxiliary head needs patches of {MIN_AUXILIARY_PX} px, these have {size}",
                remedy="Set training.auxiliary_weight to 0",
            )
        moved = network.to(device.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._distributed.world_size > 1 and device.is_cuda:
            moved = nn.SyncBatchNorm.convert_sync_batchnorm(moved)  # type: ignore[no-untyped-call]
        self._network: InceptionV3 = moved
        self._average = WeightAverage(self._network, options.average_decay) if options.average_decay else None
        self._sampler = BalancedSampler(dataset, options.seed, len(CLASSES))
        self._optimizer = make_optimizer(self._network.parameters(), options, fused=device.is_cuda)
        planned = max(1, round(options.epochs * len(dataset) / options.batch_size))
        self.steps = min(planned, options.max_steps or planned)
        self.keeps_best = options.keep == "best" and len(validation) > 0
        self.progress = Progress()
        self._frozen: bool | None = None
        self._pending: _PendingStep | None = None
        self._stop_requested = False
        self._stop_requested_at: int | None = None

    def stop(self) -> None:
        """Stop after the current step. Safe to call from a signal handler."""
        self._stop_requested = True

    def train(self, checkpoint_seconds: float) -> None:
        """Train to the last step, from the last checkpoint if there is one; write one every `checkpoint_seconds`.

        Raises `StoppedError` after `stop`, and `ModelError` where the loss is not finite or a batch exceeds the memory.
        """
        self._resume()
        progress, options = self.progress, self._options
        saved = time.monotonic()
        part = self._distributed.shard(options.batch_size)
        index = (self._sampler.batch(step, options.batch_size)[part] for step in range(progress.step, self.steps))
        batches = Prefetcher(self._dataset, index, workers=self._workers, pin=self._device.is_cuda)
        self._log.begin(progress.step, self.steps, options.batch_size)
        for picked, pixels in batches:
            result = self._step(progress.step, picked, pixels)
            self._collect_loss((progress.step, picked, result))
            progress.step += 1
            if progress.step % options.validate_every == 0 or progress.step == self.steps:
                self._finish_step()
                self._record()
                if self._is_out_of_patience():
                    if self._distributed.is_main:
                        log.info(
                            "no better validation in the last %d, stopping at step %d", options.patience, progress.step
                        )
                    break
            if self._should_stop():
                self._save()
                raise StoppedError(f"stopped at step {progress.step} of {self.steps}")
            if time.monotonic() - saved > checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            self._log.step(progress.step, progress.losses[-1] if progress.losses else None, batches.wait_seconds)

    def selected_state(self) -> State:
        """The weights selected by `keep`: the best by validation, or the last."""
        return self.progress.best_state if self.keeps_best else self.last_state()

    def last_state(self) -> State:
        """The weights after the last step, or their moving average, without the auxiliary head."""
        state = self._average.state if self._average else self._network.state_dict()
        return {name: tensor.detach().cpu() for name, tensor in state.items() if not name.startswith("AuxLogits.")}

    def augmentation_examples(self) -> tuple[Tensor, Tensor]:
        """Patches of the first step before and after augmentation, (n, 3, h, w) each, in [0, 1]."""
        index = self._sampler.batch(0, self._options.batch_size)
        draws = AugmentationDraws.draw(len(index), self._options.seed, 0)
        few = slice(0, _SHOWN_PATCHES)
        pixels = torch.from_numpy(np.stack([self._dataset.read(int(patch)) for patch in index[few]]))
        cpu = torch.device("cpu")
        stored = to_unit(center_crops(pixels, self._dataset.border_px), cpu)
        return stored, self._augmented(to_unit(pixels, cpu), draws.subset(few))

    def _augmented(self, unit: Tensor, draws: AugmentationDraws) -> Tensor:
        return augment(random_crops(unit, self._dataset.border_px, draws), self._options.augmentation, draws)

    def _step(self, step: int, picked: Index, pixels: Tensor) -> Callable[[], Tensor]:
        """Launch a step. The returned call waits for its result: mean loss, and number of processes asked to stop."""
        options, distributed = self._options, self._distributed
        device = self._device.device
        part = distributed.shard(options.batch_size)
        self._set_trainable(step)
        draws = AugmentationDraws.draw(options.batch_size, options.seed, step).subset(part)
        keep = to_device(dropout_mask(options.batch_size, options.seed, step)[part], device)
        labels = to_device(torch.from_numpy(self._dataset.labels[picked]), device)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(options, step, self.steps)
        try:
            unit = self._augmented(to_unit(pixels, device), draws)
            with self._device.autocast():
                loss = self._loss(to_input(unit).to(self._network.fc.weight.dtype), keep, labels) / options.batch_size
            self._optimizer.zero_grad(set_to_none=True)
            # DistributedDataParallel averages the gradients of the processes; the gradient of the batch is their sum.
            (loss * distributed.world_size).backward()
            if options.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._network.parameters(), options.clip_norm)
            self._optimizer.step()
        except torch.cuda.OutOfMemoryError as error:
            raise ModelError(
                f"a step of {len(picked)} patches does not fit the GPU ({self._device.free_gib():.1f} GiB are free)",
                remedy="Lower training.batch_size, or train on several GPUs",
            ) from error
        if self._average:
            self._average.update()
        return copy_to_cpu(
            distributed.all_reduce(
                torch.stack([loss.detach(), torch.full_like(loss, float(self._stop_requested))]).detach()
            )
        )

    def _set_trainable(self, step: int) -> None:
        """Freeze all layers but the last ones for the first `freeze_steps` steps, then unfreeze them."""
        frozen = step < self._options.freeze_steps
        if frozen != self._frozen:
            self._frozen = frozen
            for name, parameter in self._network.named_parameters():
                parameter.requires_grad_(not frozen or name.startswith(("fc.", "AuxLogits.fc.")))
            loss: nn.Module = _SummedLoss(self._network, self._options)
            if self._distributed.world_size > 1:
                loss = DistributedDataParallel(loss, forward_sync_buffers=False)
            self._loss = loss
        # Evaluation mode: frozen layers keep their batch-norm statistics.
        self._network.train(not frozen)
        if self._network.training and self._distributed.world_size > 1 and not self._device.is_cuda:
            # With batch statistics per process, the result would depend on the number of processes.
            count = self._distributed.world_size
            raise ModelError(
                f"{count} processes cannot train on CPUs: batch norms are synchronised on GPUs only",
                remedy="Set gpu of the rule train, or --gpus, to 1",
            )

    def _collect_loss(self, launched: _PendingStep | None) -> None:
        """Read the loss of the step before `launched`. Reading that of `launched` itself would leave the GPU idle."""
        before, self._pending = self._pending, launched
        if before is None:
            return
        step, picked, result = before
        loss, stopping = result().tolist()
        if not np.isfinite(loss):
            raise ModelError(
                self._loss_error(loss, step, picked), remedy="Lower training.learning_rate, or inspect the patches"
            )
        self.progress.losses.append(loss)
        if stopping and self._stop_requested_at is None:
            self._stop_requested_at = step

    def _finish_step(self) -> None:
        self._collect_loss(None)

    def _should_stop(self) -> bool:
        if self._distributed.world_size == 1:
            return self._stop_requested
        # A step's flags reach all processes once they have launched the next step, so all stop at the same one.
        return self._stop_requested_at is not None and self.progress.step >= self._stop_requested_at + 2

    def _loss_error(self, loss: float, step: int, picked: Index) -> str:
        patches = [self._dataset.describe(int(patch)) for patch in picked]
        some = ", ".join(f"{p.get('slide')} ({p.get('x')}, {p.get('y')})" for p in patches[:4])
        return (
            f"the loss is {loss} at step {step}, with patches of {some} and {max(0, len(patches) - 4)} more; "
            f"the last good checkpoint is {self._checkpoints}"
        )

    def _record(self) -> None:
        progress = self.progress
        loss, area = self._validate()
        row: HistoryRow = {
            "step": progress.step,
            "patches": progress.step * self._options.batch_size,
            "learning_rate": learning_rate(self._options, progress.step - 1, self.steps),
            "train_loss": float(np.mean(progress.losses)),
            "validation_loss": loss,
            "validation_auc": area,
        }
        progress.history.append(row)
        progress.losses = []
        self._log.record(row)
        score = [-1.0 if area is None else area, -(loss or 0.0)]
        if len(self._validation) and score > progress.best_score:
            progress.best_score, progress.best_step = score, progress.step
            if self.keeps_best:
                progress.best_state = {name: tensor.clone() for name, tensor in self.last_state().items()}

    def _is_out_of_patience(self) -> bool:
        worse = sum(row["step"] > self.progress.best_step for row in self.progress.history)
        return self._options.patience is not None and len(self._validation) > 0 and worse >= self._options.patience

    def _validate(self) -> tuple[float | None, float | None]:
        count = min(len(self._validation), self._options.validation_patches)
        if not count:
            return None, None
        chosen = np.linspace(0, len(self._validation) - 1, count).round().astype(np.int64)
        processes = self._distributed.world_size
        parts = [chosen[DistributedContext(rank, processes).shard(count)] for rank in range(processes)]
        own = self._logits(parts[self._distributed.rank])
        logits = self._distributed.all_gather(own, [len(part) for part in parts]).cpu()
        labels = self._validation.labels[chosen]
        loss = F.cross_entropy(logits, torch.from_numpy(labels)).item()
        return loss, auc(Histogram.of(log_odds(logits.double(), _TUMOR).numpy(), labels == _TUMOR))

    def _logits(self, chosen: Index) -> Tensor:
        size, device = self._options.batch_size, self._device.device
        network = self._network if self._average is None else self._average.network
        network.eval()
        batches: Iterator[Index] = (chosen[start : start + size] for start in range(0, len(chosen), size))
        found = [torch.zeros(0, len(CLASSES), device=device)]
        with torch.inference_mode(), self._device.autocast():
            for _, pixels in Prefetcher(self._validation, batches, workers=self._workers, pin=self._device.is_cuda):
                unit = to_unit(center_crops(pixels, self._validation.border_px), device)
                found.append(network(to_input(unit)))
        return torch.cat(found)

    def _save(self) -> None:
        if not self._distributed.is_main:
            return
        self._finish_step()
        progress = self.progress
        self._checkpoints.save(
            {
                "inputs": self._inputs,
                "step": progress.step,
                "network": self._network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "average": self._average.checkpoint() if self._average else None,
                "progress": {name: getattr(progress, name) for name in Progress.__slots__},
            }
        )

    def _resume(self) -> None:
        content = self._checkpoints.load(self._inputs, self._device.device)
        self._distributed.barrier()
        if content is None:
            return
        self._network.load_state_dict(content["network"])
        self._optimizer.load_state_dict(content["optimizer"])
        if self._average:
            self._average.restore(content["average"])
        self.progress = Progress(**content["progress"])
        if self._distributed.is_main:
            log.info("resuming from step %d", self.progress.step)
