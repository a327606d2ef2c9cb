"""A training from receipts of patches to the model's receipt: datasets, trainer, and the identity of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.config import CLASSES, TrainRun
from wsi_pipeline.io.digests import digest_file, digest_json
from wsi_pipeline.io.fingerprints import fingerprint
from wsi_pipeline.model.checkpoints import Checkpoints
from wsi_pipeline.model.dataset import PatchDataset
from wsi_pipeline.model.device import Device, pick_device
from wsi_pipeline.model.distributed import DistributedContext, init_distributed
from wsi_pipeline.model.model_dir import ARCHITECTURE, NORMALISATION, initial_network
from wsi_pipeline.model.patch_set import (
    PatchSet,
    check_both_classes,
    check_same_format,
    check_stores,
    class_counts,
    read_patch_receipt,
)
from wsi_pipeline.model.trainer import Trainer
from wsi_pipeline.model.training_log import HistoryRow, TrainingLog
from wsi_pipeline.receipts.models import ModelReceipt, PatchSetFacts
from wsi_pipeline.receipts.slides import PatchStoreReceipt


@dataclass(frozen=True, slots=True)
class Resources:
    """What all processes of a training share: memory for patches in GiB, and threads that read and decode them."""

    memory_gib: float = 4.0
    workers: int = 2

    def per_process(self, processes: int) -> Resources:
        return Resources(self.memory_gib / processes, max(1, self.workers // processes))


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A trainer and the facts about its inputs.

    `started_from` is the digest and the fingerprint of given weights, as they were when the training began.
    """

    trainer: Trainer
    training_log: TrainingLog
    checkpoints: Checkpoints
    distributed: DistributedContext
    device: Device
    options: TrainRun
    receipts: Sequence[PatchStoreReceipt]
    training: PatchSetFacts
    validation: PatchSetFacts
    started_from: tuple[str, str] | None

    @property
    def kept_step(self) -> int:
        """The step whose weights the model has."""
        progress = self.trainer.progress
        return progress.best_step if self.trainer.keeps_best else progress.step

    @property
    def kept_row(self) -> HistoryRow:
        return next(row for row in self.trainer.progress.history if row["step"] == self.kept_step)

    def receipt(self, weights_sha256: str, versions: Mapping[str, str | None]) -> ModelReceipt:
        """The content of `model.json`."""
        first = self.receipts[0]
        went_on_from, source_fingerprint = self.started_from or (None, None)
        return ModelReceipt(
            architecture=ARCHITECTURE,
            size_px=first.size_px,
            mpp=first.options.mpp,
            classes=CLASSES,
            normalisation=NORMALISATION,
            stain_normalisation=first.options.stain_normalisation,
            weights_sha256=weights_sha256,
            steps=self.trainer.progress.step,
            kept_step=self.kept_step,
            training=self.training,
            validation=self.validation,
            patches_sha256=tuple((one.run.stage, one.slide, one.store_sha256) for one in self.receipts),
            options=self.options,
            device=self.device.kind,
            dtype=self.device.precision,
            went_on_from=went_on_from,
            source_fingerprint=source_fingerprint,
            processes=self.distributed.world_size,
            versions=dict(versions),
        )


def prepare_training(
    training: Sequence[Path],
    validation: Sequence[Path],
    options: TrainRun,
    *,
    imagenet: Path | None,
    go_on_from: Path | None,
    checkpoints: Path,
    events: Path | None,
    resources: Resources,
) -> TrainingRun:
    """Open the patches beside the receipts and make the trainer, with the same weights in every process.

    Raises `PipelineError` for patches of different formats and for training patches of one class only.
    """
    receipts = [read_patch_receipt(path) for path in (*training, *validation)]
    check_same_format(receipts)
    device = pick_device(options.cpu_threads, options.precision)
    distributed = init_distributed()
    own = resources.per_process(distributed.world_size)
    training_patches = _open_dataset(training, own)
    check_both_classes(class_counts(training_patches.labels))
    validation_patches = _open_dataset(validation, own)
    start = options.start if go_on_from is None else str(go_on_from)
    network = initial_network(start, len(CLASSES), options.seed, imagenet, auxiliary=options.auxiliary_weight > 0)
    started_from = None if go_on_from is None else (digest_file(go_on_from), fingerprint(go_on_from))
    digest = digest_json(
        {
            "options": options.model_dump(mode="json"),
            "device": device.kind,
            "dtype": device.precision,
            "went_on_from": started_from and started_from[0],
            "patches": [receipt.as_json() for receipt in receipts],
        }
    )
    kept = Checkpoints(checkpoints)
    training_log = TrainingLog(enabled=distributed.is_main, events=events)
    trainer = Trainer(
        network,
        training_patches,
        validation_patches,
        options,
        device,
        kept,
        digest,
        distributed=distributed,
        workers=own.workers,
        training_log=training_log,
    )
    facts = [
        PatchSetFacts(slides=len(paths), **dict(class_counts(patches.labels)))
        for paths, patches in ((training, training_patches), (validation, validation_patches))
    ]
    return TrainingRun(
        trainer, training_log, kept, distributed, device, options, receipts, facts[0], facts[1], started_from
    )


def _open_dataset(receipts: Sequence[Path], resources: Resources) -> PatchDataset:
    patches = PatchSet(receipts)
    check_stores(patches)
    return PatchDataset(patches.stores, patches.indices, memory_gib=resources.memory_gib, workers=resources.workers)
