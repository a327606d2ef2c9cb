"""Reads a results folder for the viewer: models, slides and their state, also while a run is in progress."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_pipeline.config import NAME_PATTERN
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.summary import Figures, headline, read_metrics
from wsi_pipeline.io.layout import SLIDE_STAGES, TEST_SLIDE_STAGES, Layout, ResultNotFoundError, SlideLayout
from wsi_pipeline.provenance.run_record import last_run
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import CalibrateReceipt
from wsi_pipeline.report.slide_data import HeatGrid, heat_grid, read_detections

_NAME = re.compile(NAME_PATTERN)

Row = Mapping[str, str]


@dataclass(slots=True)
class Results:
    """A results folder. Every call reads the disk again, so that the progress of a run shows.

    Raises `StoreError` if the folder holds no results of a run.
    """

    folder: Path
    _names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not (self.folder / "slides").is_dir() and not (self.folder / "logs" / "runs").is_dir():
            raise StoreError(f"{self.folder}: no results of a run", remedy="Name a folder that Snakemake filled")

    def models(self) -> list[str]:
        """Names of the models with heatmaps, the most recently evaluated first, then in descending order."""
        names = sorted(path.name for path in (self.folder / "heatmaps").glob("*") if path.is_dir())
        metrics = {name: (self.folder / "evaluation" / name / "metrics.json") for name in names}
        times = {name: path.stat().st_mtime if path.is_file() else 0.0 for name, path in metrics.items()}
        return sorted(names, key=lambda name: (times[name], name), reverse=True)

    def sheet(self) -> dict[str, Row]:
        """Rows of the last run's slide sheet by slide, unvalidated, and empty rows for other slides of the folder.

        Excluded slides and names that are no slide ids are left out.
        """
        run = last_run(self.folder)
        lines = [line for line in run["sheet"]["text"].splitlines() if not line.startswith("#")] if run else []
        rows = [row for row in csv.DictReader(io.StringIO("\n".join(lines)), delimiter="\t") if row.get("slide")]
        excluded = run["config"]["cohort"]["exclude"] if run else []
        found: dict[str, Row] = {str(row["slide"]): {k: v or "" for k, v in row.items() if k} for row in rows}
        for path in sorted((self.folder / "slides").glob("*")):
            if path.is_dir():
                found.setdefault(path.name, {})
        # Names become parts of paths, and a results folder may come from somebody else.
        return {name: row for name, row in found.items() if _NAME.fullmatch(name) and name not in excluded}

    def overview(self, model: str | None) -> dict[str, Any]:
        """JSON of the start page: cohort, models, headline figures, and each slide with its missing stages.

        An unknown or absent `model` is replaced by the first of `models`.
        """
        models = self.models()
        model = model if model in models else (models[0] if models else None)
        rows = self.sheet()
        self._names = set(rows)
        metrics = self.metrics(model)
        config = (last_run(self.folder) or {"config": {}})["config"]
        cohort = config.get("cohort") or (metrics or {}).get("cohort", {})
        slides = []
        for name, row in rows.items():
            done = Layout(self.folder, model).of(name).done()
            # Heatmaps of other splits exist only if a threshold, temperature or forest is fitted on them.
            expected = TEST_SLIDE_STAGES if row.get("split") == "test" else SLIDE_STAGES
            slides.append(
                {
                    "name": name,
                    "split": row.get("split", ""),
                    "label": row.get("label", ""),
                    "expected": expected,
                    "missing": [stage for stage in expected if not done[stage]],
                }
            )
        return {
            "title": config.get("report", {}).get("title") or str(self.folder),
            "cohort": cohort.get("name", ""),
            "synthetic": bool(cohort.get("synthetic")),
            "models": models,
            "model": model,
            "threshold": self.threshold(model),
            "headline": [] if metrics is None else headline(metrics),
            "complete": metrics is not None and metrics["cohort"]["complete"],
            "slides": slides,
        }

    def metrics(self, model: str | None) -> Figures | None:
        """The content of a model's metrics.json, or None before the evaluation. Raises `StoreError` if damaged."""
        path = Layout(self.folder, model).evaluation / "metrics.json"
        return read_metrics(path) if model is not None and path.is_file() else None

    def threshold(self, model: str | None) -> float:
        """The threshold of a model's operating point, 0.5 before the stage calibrate."""
        path = Layout(self.folder, model).calibration
        return read_receipt(path, CalibrateReceipt).operating_point.threshold if path.is_file() else 0.5

    def slide_layout(self, slide: str, model: str | None) -> SlideLayout:
        """Paths of a slide's files. Raises `ResultNotFoundError` for unknown slides and models.

        Every name from a URL passes through here before it becomes part of a path.
        """
        if slide not in self._names:
            self._names = set(self.sheet())
        if slide not in self._names or (model is not None and model not in self.models()):
            raise ResultNotFoundError(slide)
        return Layout(self.folder, model).of(slide)


def load_heatmap(layout: SlideLayout) -> HeatGrid | None:
    """Scores and truth of a slide, or None without a heatmap. Raises `StoreError` for damaged files."""
    done = layout.done()
    if not done["heatmap"]:
        return None
    confusion = layout.model_file("confusion", ".ome.zarr") if done["confusion"] else None
    return heat_grid(layout.model_file("heatmap", ".ome.zarr"), layout.receipt("heatmap"), confusion)


def load_detections(layout: SlideLayout) -> list[list[float]]:
    """Detections (confidence, x, y) of a slide, empty before the stage detect. Raises `StoreError` for damaged ones."""
    if not layout.done()["detect"]:
        return []
    return read_detections(layout.model_file("detect", ".csv"), layout.receipt("detect"))
