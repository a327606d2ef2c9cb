"""What a results folder has of each slide, finished or half-way through a run."""

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
from wsi_pipeline.io.layout import SLIDE_STAGES, STAGES, Layout, ResultNotFoundError, SlideLayout
from wsi_pipeline.provenance.run_record import last_run
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import CalibrateReceipt
from wsi_pipeline.report.slide_data import HeatGrid, heat_grid, read_detections

_NAME = re.compile(NAME_PATTERN)

Row = Mapping[str, str]


@dataclass(slots=True)
class Results:
    """A results folder; every question looks again, so a run may go on meanwhile."""

    folder: Path
    _names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not (self.folder / "slides").is_dir() and not (self.folder / "logs" / "runs").is_dir():
            raise StoreError(f"{self.folder}: no results of a run", remedy="Name a folder that Snakemake filled")

    def models(self) -> list[str]:
        """Models with heatmaps, the one to show first in front: it was evaluated last, or has the latest name."""
        found = sorted(path.name for path in (self.folder / "heatmaps").glob("*") if path.is_dir())
        judged = {name: (self.folder / "evaluation" / name / "metrics.json") for name in found}
        times = {name: path.stat().st_mtime if path.is_file() else 0.0 for name, path in judged.items()}
        return sorted(found, key=lambda name: (times[name], name), reverse=True)

    def sheet(self) -> dict[str, Row]:
        """The rows of the last run's sheet by slide, as they stand there, and slides that are only in the folder."""
        run = last_run(self.folder)
        lines = [line for line in run["sheet"]["text"].splitlines() if not line.startswith("#")] if run else []
        rows = [row for row in csv.DictReader(io.StringIO("\n".join(lines)), delimiter="\t") if row.get("slide")]
        left_out = run["config"]["cohort"]["exclude"] if run else []
        found: dict[str, Row] = {str(row["slide"]): {k: v or "" for k, v in row.items() if k} for row in rows}
        for path in sorted((self.folder / "slides").glob("*")):
            if path.is_dir():
                found.setdefault(path.name, {})
        # Names become parts of paths, and the folder may be someone else's.
        return {name: row for name, row in found.items() if _NAME.fullmatch(name) and name not in left_out}

    def overview(self, model: str | None) -> dict[str, Any]:
        """What the page's list needs, with what each slide lacks."""
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
            # Other splits have no heatmaps but for what is chosen on them.
            wanted = STAGES if row.get("split") == "test" else SLIDE_STAGES
            slides.append(
                {
                    "name": name,
                    "split": row.get("split", ""),
                    "label": row.get("label", ""),
                    "expected": wanted,
                    "missing": [stage for stage in wanted if not done[stage]],
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
        """The figures of a model, None where there are none yet."""
        path = Layout(self.folder, model).evaluation / "metrics.json"
        return read_metrics(path) if model is not None and path.is_file() else None

    def threshold(self, model: str | None) -> float:
        """The operating point of a model, 0.5 before it is known."""
        path = Layout(self.folder, model).calibration
        return read_receipt(path, CalibrateReceipt).operating_point.threshold if path.is_file() else 0.5

    def places(self, slide: str, model: str | None) -> SlideLayout:
        """Where the files of a slide are; `ResultNotFoundError` for names that are not those of slides and models here.

        Only such names become parts of paths.
        """
        if slide not in self._names:
            self._names = set(self.sheet())
        if slide not in self._names or (model is not None and model not in self.models()):
            raise ResultNotFoundError(slide)
        return Layout(self.folder, model).of(slide)


def load_heatmap(places: SlideLayout) -> HeatGrid | None:
    """The scores of a slide, None where it has no heatmap."""
    done = places.done()
    if not done["heatmap"]:
        return None
    confusion = places.model_file("confusion", ".ome.zarr") if done["confusion"] else None
    return heat_grid(places.model_file("heatmap", ".ome.zarr"), places.receipt("heatmap"), confusion)


def load_detections(places: SlideLayout) -> list[list[float]]:
    """Detections of a slide, none where there are none yet."""
    if not places.done()["detect"]:
        return []
    return read_detections(places.model_file("detect", ".csv"), places.receipt("detect"))
