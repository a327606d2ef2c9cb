"""Tables of the report on how the results were made: options, training, patches and commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import TrainRun
from wsi_pipeline.io.layout import SLIDE_STAGES, TEST_SLIDE_STAGES, Layout
from wsi_pipeline.provenance.snakemake_metadata import job_of_output
from wsi_pipeline.receipts.base import Receipt, read_any_version, read_receipt
from wsi_pipeline.receipts.evaluation import ConfusionReceipt, DetectReceipt, ScoresReceipt
from wsi_pipeline.receipts.models import HeatmapReceipt
from wsi_pipeline.receipts.slides import ConvertReceipt, TissueReceipt, TruthReceipt

_OF_SLIDE: tuple[type[Receipt], ...] = (
    ConvertReceipt,
    TissueReceipt,
    TruthReceipt,
    HeatmapReceipt,
    ScoresReceipt,
    ConfusionReceipt,
    DetectReceipt,
)
# Keys of `model.json` in the table of the training.
_OF_MODEL = (
    "architecture",
    "mpp",
    "size_px",
    "normalisation",
    "stain_normalisation",
    "device",
    "steps",
    "kept_step",
    "training",
    "validation",
    "versions",
)


def settings_rows(layout: Layout, slides: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of the stages' options, from the receipts of the first of the test slides."""
    found = []
    for model in _OF_SLIDE if slides else ():
        path = layout.of(slides[0]).receipt(model.run.stage)
        options = read_receipt(path, model).as_json()["options"] if path.is_file() else {}
        found += [(f"{model.run.stage}: {key}", _text(value)) for key, value in sorted(options.items())]
    return found


def training_rows(model_json: Path) -> list[tuple[str, str]]:
    """Names and values from `model.json`; none without that file."""
    if not model_json.is_file():
        return []
    # A frozen model may have been trained by an earlier version.
    model = read_any_version(model_json, TrainRun.stage)
    made = [(key, _text(model[key])) for key in _OF_MODEL if key in model]
    return made + [(key, _text(value)) for key, value in sorted(model.get("options", {}).items())]


def command_rows(layout: Layout, slides: Sequence[str], sheet: Sheet, snakemake: Path) -> list[tuple[str, str]]:
    """Rule and command of one job of each rule, from the folder `.snakemake`.

    Rules of a slide are shown for the first of the test slides, patches for the first training slide.
    """
    test, drawn = ([layout.of(slide) for slide in names[:1]] for names in (slides, sheet.of_split("train")))
    outputs = [
        *(one.receipt(stage) for one in test for stage in SLIDE_STAGES),
        *(one.slide_file("patches.json") for one in drawn),
        layout.model_json,
        *(one.receipt(stage) for one in test for stage in TEST_SLIDE_STAGES if stage not in SLIDE_STAGES),
        layout.calibration,
        layout.evaluation / "metrics.json",
    ]
    jobs = (job_of_output(snakemake, str(output)) for output in outputs)
    return [(job.rule, job.command) for job in jobs if job is not None]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    return "none" if value is None else str(value)
