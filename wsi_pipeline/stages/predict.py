"""Stage predict: run a model on all tissue patches of one or more slides.

The stage heatmap takes these predictions, and makes those of a slide that has none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.config import PredictRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.stages.arguments import (
    AllowUpsampling,
    ModelArg,
    Options,
    PredictionCheckpoints,
    ReceiptArg,
    SlidesFolder,
    Threads,
    WeightsArg,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """`slides` holds the stores and receipts of each slide in a folder of its name."""

    slides: Path
    weights: Path
    model: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    """Predictions are <slide>.raw.npz in `folder`; unfinished ones lie in `checkpoints`, by default the same folder."""

    folder: Path
    receipt: Path
    checkpoints: Path | None = None


def command(
    *,
    slides: SlidesFolder,
    slide: Annotated[list[str], typer.Option(help="Slide id; may be given again.")],
    weights: WeightsArg,
    model: ModelArg,
    output: Annotated[Path, typer.Option(help="Folder to write <slide>.raw.npz into.")],
    receipt: ReceiptArg,
    checkpoints: PredictionCheckpoints = None,
    allow_upsampling: AllowUpsampling = False,
    options: Options = "{}",
    threads: Threads = 1,
) -> None:
    """Run the model on the patches of several slides, for the stage heatmap."""
    parsed = parse_options(PredictRun, options)
    if allow_upsampling:
        parsed = parsed.model_copy(update={"allow_upsampling": True})
    run(slide, Inputs(slides, weights, model), Outputs(output, receipt, checkpoints), parsed, threads=threads)


def run(slides: Sequence[str], inputs: Inputs, outputs: Outputs, options: PredictRun, *, threads: int = 1) -> None:
    """Predict slides with a model that is loaded once.

    A slide that cannot be predicted is left out with a warning: its stage heatmap fails with the reason.
    """
    from wsi_pipeline.model.slide_prediction import TrainedModel, cache_path, predict_slide
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.models import PredictReceipt

    model = TrainedModel(inputs.weights, inputs.model, options)
    checkpoints = outputs.checkpoints or outputs.folder
    positions = {}
    for slide in slides:
        try:
            found = predict_slide(slide, inputs.slides / slide, model, checkpoints, threads)
        except PipelineError as error:
            log.warning("%s: left out here: %s", slide, error)
            continue
        if outputs.checkpoints is not None:
            found.cache.save(cache_path(outputs.folder, slide))
        positions[slide] = len(found.patches)
    # The workflow's output, needed also where no slide could be predicted.
    outputs.folder.mkdir(parents=True, exist_ok=True)
    write_receipt(
        outputs.receipt,
        PredictReceipt(
            model_sha256=model.metadata.weights_sha256, slides=tuple(slides), positions=positions, options=options
        ),
    )
