"""Where the workflow puts the files of a slide and of a model, for what reads results as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_OF_SLIDE = {"convert": "pyramid.json", "tissue": "tissue.json", "truth": "truth.json"}
_OF_MODEL = {"heatmap": "heatmaps", "scores": "scores", "confusion": "confusion", "detect": "detections"}
# Stages that have a receipt for each test slide.
STAGES = (*_OF_SLIDE, *_OF_MODEL)
# Those of any slide.
SLIDE_STAGES = tuple(_OF_SLIDE)


class ResultNotFoundError(LookupError):
    """What is asked for is not among the results."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A results folder, for one model (none where nothing is predicted yet)."""

    results: Path
    model: str | None

    @property
    def slides(self) -> Path:
        return self.results / "slides"

    @property
    def evaluation(self) -> Path:
        return self.results / "evaluation" / (self.model or "")

    @property
    def calibration(self) -> Path:
        return self.results / "calibration" / f"{self.model}.json"

    @property
    def model_json(self) -> Path:
        return self.results / "model" / (self.model or "") / "model.json"

    def of(self, slide: str) -> SlideLayout:
        """The files of a slide."""
        return SlideLayout(self, slide)


@dataclass(frozen=True, slots=True)
class SlideLayout:
    """Receipts and stores of one slide. A stage is done where its receipt is there."""

    layout: Layout
    slide: str

    def slide_file(self, name: str) -> Path:
        """A file or store that no model has made, such as `truth.ome.zarr`."""
        return self.layout.slides / self.slide / name

    def pyramid(self) -> Path:
        """The slide's pyramid or, where it is not kept, its overview."""
        whole = self.slide_file("pyramid.ome.zarr")
        return whole if whole.is_dir() else self.slide_file("overview.ome.zarr")

    def model_file(self, stage: str, suffix: str) -> Path:
        """A file or store of a stage after the training."""
        return self.layout.results / _OF_MODEL[stage] / (self.layout.model or "") / f"{self.slide}{suffix}"

    def receipt(self, stage: str) -> Path:
        """The receipt of a stage."""
        return self.slide_file(_OF_SLIDE[stage]) if stage in _OF_SLIDE else self.model_file(stage, ".json")

    def done(self) -> dict[str, bool]:
        """Which stages are done."""
        return {stage: self.receipt(stage).is_file() for stage in STAGES}

    def version(self, stage: str) -> str:
        """Another one when the stage has run again; `ResultNotFoundError` where it is not done."""
        try:
            return f"{self.receipt(stage).stat().st_mtime_ns:x}"
        except FileNotFoundError as error:
            raise ResultNotFoundError(stage) from error
