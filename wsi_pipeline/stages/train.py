"""Stage train: train Inception-v3 to classify patches as normal or tumour."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_pipeline.cohort.sheet import Sheet, load_sheet
from wsi_pipeline.config import CLASSES, TrainRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.stages.arguments import Exclude, Options, Rows, Synthetic

if TYPE_CHECKING:
    from wsi_pipeline.model.trainer import Trainer
    from wsi_pipeline.model.training_log import TrainingLog

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Receipts of patches, beside whose stores they lie. Training starts from the weights `go_on_from` where given: of
    the round before, or of another model.

    `imagenet` is torchvision's file of weights, for the option `start: imagenet`.
    """

    training: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    imagenet: Path | None = None
    go_on_from: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """`last` has the weights after the last step, `augmented` is a picture of some patches."""

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
            weights=folder / "weights.safetensors",
            last=folder / "last.safetensors",
            receipt=folder / "model.json",
            history=folder / "history.csv",
            curves=folder / "curves.png",
            augmented=folder / "augmented.png",
        )


def command(
    *,
    output: Annotated[Path, typer.Option(help="Model folder to write into.")],
    sheet: Annotated[Path | None, typer.Option(help="The slide sheet.")] = None,
    slides: Annotated[Path | None, typer.Option(help="Folder of the slides, with their patches.")] = None,
    exclude: Exclude = None,
    rows: Rows = None,
    negatives: Annotated[
        list[Path] | None, typer.Option(help="Folders that the stage negatives wrote into, of earlier rounds.")
    ] = None,
    go_on_from: Annotated[Path | None, typer.Option(help="Weights that the training starts from.")] = None,
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("checkpoints"),
    imagenet: Annotated[Path | None, typer.Option(help="inception_v3_google-0cc3c7bd.pth.")] = None,
    take: Annotated[Path | None, typer.Option(help="Take these trained weights instead of training.")] = None,
    size_px: Annotated[int, typer.Option(help="Patch size of taken weights without model.json.")] = 299,
    mpp: Annotated[float, typer.Option(help="Scale of taken weights without model.json.")] = 0.25,
    memory_gib: Annotated[
        float, typer.Option(help="Patches kept in memory by all processes, GiB; more are read as needed.")
    ] = 4.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and decode patches, of all processes.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, help="Processes that train together, a GPU each; 0 is 1.")] = 1,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 10.0,
    events: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's files.")] = None,
    synthetic: Synthetic = False,
    options: Options = "{}",
) -> None:
    """Train Inception-v3, or take trained weights."""
    from wsi_pipeline.model.distributed import STOPPED_EXIT_CODE, is_worker_process, launch_processes
    from wsi_pipeline.model.trainer import StoppedError

    parsed = parse_options(TrainRun, options)
    if gpus > 1 and not is_worker_process():
        raise typer.Exit(launch_processes(gpus, sys.argv[1:]))
    outputs = Outputs.of(output)
    if take is not None:
        take_weights(take, outputs, size_px=size_px, mpp=mpp)
        return
    if sheet is None or slides is None:
        raise ConfigError("training needs --sheet and --slides")
    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    loaded.check_digest(rows, "train", "validation")
    inputs = _inputs_of(loaded, slides, negatives or (), imagenet=imagenet, go_on_from=go_on_from)
    try:
        run(
            inputs,
            outputs,
            parsed,
            checkpoints=checkpoints,
            memory_gib=memory_gib,
            workers=workers,
            checkpoint_minutes=checkpoint_minutes,
            events=events,
            synthetic=synthetic,
        )
    except StoppedError as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(STOPPED_EXIT_CODE) from stopped


def _inputs_of(
    sheet: Sheet, slides: Path, negatives: Iterable[Path], *, imagenet: Path | None, go_on_from: Path | None
) -> Inputs:
    """The sheet's training and validation slides in the folder `slides`, and the hard negatives of earlier rounds."""
    training, validation = (
        [slides / slide / "patches.json" for slide in sheet.of_split(split)] for split in ("train", "validation")
    )
    hard = [folder / f"{slide}.json" for folder in negatives for slide in sheet.of_split("train")]
    return Inputs(training=(*training, *hard), validation=tuple(validation), imagenet=imagenet, go_on_from=go_on_from)


def run(
    inputs: Inputs,
    outputs: Outputs,
    options: TrainRun,
    *,
    checkpoints: Path,
    memory_gib: float = 4.0,
    workers: int = 2,
    checkpoint_minutes: float = 10.0,
    events: Path | None = None,
    synthetic: bool = False,
) -> None:
    """Train and write the model folder. Resumes from a checkpoint of the same inputs in the folder `checkpoints`.

    `memory_gib` and `workers` are for all processes that train together. `events` is a folder for TensorBoard.
    Raises `StoppedError` on SIGTERM, SIGINT and SIGUSR1, once the checkpoint is written.
    """
    import torch

    from wsi_pipeline import __version__
    from wsi_pipeline.model.stop_signals import stop_on_signals
    from wsi_pipeline.model.training_log import short
    from wsi_pipeline.model.training_run import Resources, prepare_training
    from wsi_pipeline.provenance.versions import git_commit, package_versions
    from wsi_pipeline.receipts.base import write_receipt

    training = prepare_training(
        inputs.training,
        inputs.validation,
        options,
        imagenet=inputs.imagenet,
        go_on_from=inputs.go_on_from,
        checkpoints=checkpoints,
        events=events,
        resources=Resources(memory_gib, workers),
    )
    trainer, distributed = training.trainer, training.distributed
    if distributed.is_main:
        _show_augmented(trainer, outputs.augmented, training.training_log, synthetic)
    try:
        with stop_on_signals(trainer.stop):
            trainer.train(checkpoint_minutes * 60)
    finally:
        training.training_log.close()
    if distributed.is_main:
        own = {"wsi_pipeline": __version__, "torch": torch.__version__, "commit": git_commit()}
        weights_sha256 = _write_weights(trainer, outputs, synthetic)
        write_receipt(outputs.receipt, training.receipt(weights_sha256, {**package_versions(), **own}))
        kept = training.kept_row
        log.info(
            "%s: %d steps, kept step %d with validation loss %s, AUC %s",
            options.model,
            trainer.progress.step,
            training.kept_step,
            short(kept["validation_loss"]),
            short(kept["validation_auc"]),
        )
        training.checkpoints.remove()
    distributed.close()


def take_weights(source: Path, outputs: Outputs, *, size_px: int, mpp: float) -> None:
    """Write a model folder of trained weights. `size_px` and `mpp` count where no model.json lies beside them."""
    from wsi_pipeline.io.fingerprints import fingerprint
    from wsi_pipeline.model.model_dir import (
        ModelMetadata,
        load_network,
        read_model_json,
        save_weights,
        write_model_json,
    )

    described = source.with_name("model.json")
    known = read_model_json(described) if described.is_file() else ModelMetadata(size_px, mpp, CLASSES, "")
    network = load_network(source, known)
    digest = save_weights(outputs.weights, network.state_dict())
    write_model_json(outputs.receipt, replace(known, weights_sha256=digest), fingerprint(source))
    log.info("took trained weights %s (%d px at %g um per pixel)", digest[:12], known.size_px, known.mpp)


def _write_weights(trainer: Trainer, outputs: Outputs, synthetic: bool) -> str:
    """Write weights, history and curves; returns the digest of the kept weights."""
    from wsi_pipeline.io.atomic import write_text
    from wsi_pipeline.model.model_dir import save_weights
    from wsi_pipeline.model.training_log import history_csv
    from wsi_pipeline.plots.figures import save_figure, training_curves

    history = trainer.progress.history
    save_weights(outputs.last, trainer.last_state())
    digest = save_weights(outputs.weights, trainer.selected_state())
    write_text(outputs.history, history_csv(history))
    save_figure(training_curves(history, synthetic), outputs.curves)
    return digest


def _show_augmented(trainer: Trainer, path: Path, training_log: TrainingLog, synthetic: bool) -> None:
    import numpy as np

    from wsi_pipeline.plots.figures import patch_grid, save_figure

    rows = [(row.permute(0, 2, 3, 1) * 255).round().byte().numpy() for row in trainer.augmentation_examples()]
    save_figure(patch_grid(rows, ("as stored", "as trained on"), synthetic), path)
    training_log.image(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))
