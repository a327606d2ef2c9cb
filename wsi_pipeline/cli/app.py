"""The command line: one subcommand a stage, and those of `tools`.

A `PipelineError` becomes one line and exit code 2; anything else is a bug and keeps its traceback.
Heavy libraries are imported by the stages, inside the commands.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, TextIO, TypeVar

import typer

from wsi_pipeline.cli import tools
from wsi_pipeline.config import STAGES, HeatmapRun, PredictRun
from wsi_pipeline.errors import ConfigError, PipelineError
from wsi_pipeline.io.atomic import is_out_of_space
from wsi_pipeline.stages.arguments import (
    AllowUpsampling,
    Exclude,
    ModelArg,
    Options,
    Receipt,
    Rows,
    Slide,
    SlidesFolder,
    Synthetic,
    Threads,
    Weights,
)

Prediction = TypeVar("Prediction", HeatmapRun, PredictRun)

app = typer.Typer(
    name="wsi-pipeline",
    help="Train and evaluate tumour classifiers on whole-slide images, stage by stage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: above progress bars, where there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Stderr()])
    # What tifffile cannot read is left to OpenSlide, whose error is the one that helps.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    for library in ("pyvips", "fontTools"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        app()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not is_out_of_space(error):
            raise
        print(f"error: {error.filename or 'a file'}: cannot be written ({error.strerror}). Free space", file=sys.stderr)
        sys.exit(2)


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="Model folder to write into.")],
    sheet: Annotated[Path | None, typer.Option(help="The slide sheet.")] = None,
    slides: Annotated[Path | None, typer.Option(help="Folder of the slides, with their patches.")] = None,
    exclude: Exclude = None,
    rows: Rows = None,
    negatives: Annotated[
        list[Path] | None, typer.Option(help="Folders that the stage negatives wrote into, of earlier rounds.")
    ] = None,
    go_on_from: Annotated[Path | None, typer.Option(help="Weights of the round before.")] = None,
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
    from wsi_pipeline.cohort.sheet import load_sheet
    from wsi_pipeline.config import TrainRun
    from wsi_pipeline.config.loading import parse_options
    from wsi_pipeline.model.distributed import STOPPED_EXIT_CODE, is_worker_process, launch_processes

    parsed = parse_options(TrainRun, options)
    if gpus > 1 and not is_worker_process():
        code = launch_processes(gpus, sys.argv[1:])
        if code:
            raise typer.Exit(code)
        return
    from wsi_pipeline.model.trainer import StoppedError
    from wsi_pipeline.stages import train as stage

    outputs = stage.Outputs.of(output)
    if take is not None:
        stage.take(take, outputs, size_px=size_px, mpp=mpp)
        return
    if sheet is None or slides is None:
        raise ConfigError("training needs --sheet and --slides")
    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    loaded.check_digest(rows, "train", "validation")
    hard = [folder / f"{slide}.json" for folder in negatives or () for slide in loaded.of_split("train")]
    training, validation = (
        [slides / slide / "patches.json" for slide in loaded.of_split(split)] for split in ("train", "validation")
    )
    try:
        stage.run(
            stage.PatchSet.of([*training, *hard]),
            stage.PatchSet.of(validation),
            outputs,
            checkpoints,
            parsed,
            imagenet=imagenet,
            go_on_from=go_on_from,
            memory_gib=memory_gib,
            workers=workers,
            checkpoint_minutes=checkpoint_minutes,
            events=events,
            synthetic=synthetic,
        )
    except StoppedError as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(STOPPED_EXIT_CODE) from stopped


@app.command()
def predict(
    slides: SlidesFolder,
    slide: Annotated[list[str], typer.Option(help="Slide id; may be given again.")],
    weights: Weights,
    model: ModelArg,
    output: Annotated[Path, typer.Option(help="Folder to write <slide>.raw.npz into.")],
    receipt: Receipt,
    allow_upsampling: AllowUpsampling = False,
    options: Options = "{}",
    threads: Threads = 1,
) -> None:
    """Ask the network about the patches of several slides, for the stage heatmap."""
    from wsi_pipeline.stages import predict as stage

    stage.run(
        slide, slides, weights, model, output, receipt, _prediction(PredictRun, options, allow_upsampling), threads
    )


@app.command()
def heatmap(
    slides: SlidesFolder,
    slide: Slide,
    weights: Weights,
    model: ModelArg,
    output: Annotated[Path, typer.Option(help="Folder to write <slide>.ome.zarr and <slide>.json into.")],
    allow_upsampling: AllowUpsampling = False,
    options: Options = "{}",
    threads: Threads = 1,
) -> None:
    """Predict the tumour probability of every patch of a slide."""
    from wsi_pipeline.stages import heatmap as stage

    stage.run(slide, slides, weights, model, output, _prediction(HeatmapRun, options, allow_upsampling), threads)


def _prediction(model: type[Prediction], options: str, allow_upsampling: bool) -> Prediction:
    from wsi_pipeline.config.loading import parse_options

    parsed = parse_options(model, options)
    return parsed.model_copy(update={"allow_upsampling": True}) if allow_upsampling else parsed


for name in STAGES:
    module = import_module(f"wsi_pipeline.stages.{name}")
    if hasattr(module, "command"):
        app.command(name)(module.command)
app.add_typer(tools.app)
