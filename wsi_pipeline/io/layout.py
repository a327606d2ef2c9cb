"""Paths of the workflow's outputs per slide and per model, for code that reads a whole results folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.config import Config

_SLIDE_RECEIPTS = {"convert": "pyramid.json", "tissue": "tissue.json", "truth": "truth.json"}
_MODEL_FOLDERS = {"heatmap": "heatmaps", "scores": "scores", "confusion": "confusion", "detect": "detections"}
# Stages with a receipt for each test slide.
TEST_SLIDE_STAGES = (*_SLIDE_RECEIPTS, *_MODEL_FOLDERS)
# Of these, the stages that do not depend on a model.
SLIDE_STAGES = tuple(_SLIDE_RECEIPTS)


def keeps_model(config: Config) -> bool:
    """Whether the config keeps an existing model, whatever has changed (`training.retrain: frozen`)."""
    layout = Layout(Path(config.results), config.training.models[-1])
    return config.training.retrain == "frozen" and layout.model_json.is_file()


class ResultNotFoundError(LookupError):
    """The results folder does not contain the requested item."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A results folder with one model; `model` is None before any prediction."""

    results: Path
    model: str | None

    @property
    def slides(self) -> Path:
        return self.results / "slides"

    @property
    def evaluation(self) -> Path:
        return self.results / "evaluation" / (self.model or "")

    def evaluated_models(self) -> list[str]:
        """Names of all models with a finished evaluation, sorted."""
        return sorted(path.parent.name for path in (self.results / "evaluation").glob("*/metrics.json"))

    @property
    def calibration(self) -> Path:
        return self.results / "calibration" / f"{self.model}.json"

    @property
    def model_json(self) -> Path:
        return self.results / "model" / (self.model or "") / "model.json"

    def folder(self, stage: str) -> Path:
        """The folder of a stage of the slides that depends on the model."""
        return self.results / _MODEL_FOLDERS[stage] / (self.model or "")

    def of(self, slide: str) -> SlideLayout:
        """The layout of one slide."""
        return SlideLayout(self, slide)


@dataclass(frozen=True, slots=True)
class SlideLayout:
    """Receipts and stores of one slide. A stage is done when its receipt exists."""

    layout: Layout
    slide: str

    def slide_file(self, name: str) -> Path:
        """A file or store that does not depend on a model, such as `truth.ome.zarr`."""
        return self.layout.slides / self.slide / name

    def pyramid(self) -> Path:
        """The pyramid of the slide, or its overview where the pyramid is not kept."""
        pyramid = self.slide_file("pyramid.ome.zarr")
        return pyramid if pyramid.is_dir() else self.slide_file("overview.ome.zarr")

    def model_file(self, stage: str, suffix: str) -> Path:
        """A file or store of a stage that depends on the model."""
        return self.layout.folder(stage) / f"{self.slide}{suffix}"

    def receipt(self, stage: str) -> Path:
        """The receipt of a stage."""
        return self.slide_file(_SLIDE_RECEIPTS[stage]) if stage in _SLIDE_RECEIPTS else self.model_file(stage, ".json")

    def done(self) -> dict[str, bool]:
        """Which stages are done."""
        return {stage: self.receipt(stage).is_file() for stage in TEST_SLIDE_STAGES}

    def version(self, stage: str) -> str:
        """A token that changes when the stage runs again. Raises `ResultNotFoundError` where the stage is not done."""
        try:
            return f"{self.receipt(stage).stat().st_mtime_ns:x}"
        except FileNotFoundError as error:
            raise ResultNotFoundError(stage) from error
