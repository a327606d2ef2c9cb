"""Evaluations of three models of the same slides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.evaluated import SHEET, maps
from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import EvaluateRun
from wsi_pipeline.stages import evaluate

MODELS = ("a", "b", "c")
PARTS = ("scores", "confusion", "detections")


def heat_of(model: str, slide: str) -> np.ndarray:
    """The heatmap of a slide: that of `maps` for the model a, and with more errors for the others."""
    heat, noise_share = maps(slide)[0], {"a": 0.0, "b": 0.5, "c": 0.8}[model]
    noise = np.random.default_rng([*model.encode(), *slide.encode()]).uniform(0, 1, heat.shape)
    return (1 - noise_share) * heat + noise_share * noise


def evaluated(predicted: Path, results: Path, sheets: dict[str, Sheet] | None = None, **more: Any) -> Path:
    """A results folder with an evaluation of each model, on the slides of a sheet."""
    for model, sheet in (sheets or dict.fromkeys(MODELS, SHEET)).items():
        for part in PARTS:
            shutil.copytree(predicted / model / part, results / part / model, dirs_exist_ok=True)
        (results / "calibration").mkdir(exist_ok=True)
        shutil.copy(predicted / model / "calibration.json", results / "calibration" / f"{model}.json")
        evaluate_again(results, model, sheet, **more)
    return results


def evaluate_again(results: Path, model: str, sheet: Sheet = SHEET, **more: Any) -> None:
    folders = {part: results / part / model for part in PARTS}
    inputs = evaluate.Inputs(**folders, calibration=results / "calibration" / f"{model}.json")
    evaluate.run(sheet, inputs, evaluate.Outputs(results / "evaluation" / model), EvaluateRun(**more))


def change_receipts(
    results: Path, model: str, part: str, slides: str, change: Callable[[dict[str, Any]], None]
) -> None:
    """Change receipts of a model, and evaluate it again."""
    for slide in slides.split():
        path = results / part / model / f"{slide}.json"
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))
    evaluate_again(results, model)
