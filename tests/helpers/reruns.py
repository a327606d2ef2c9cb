"""Changes to the finished run of the tiny cohort, and the jobs that follow from each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.workflow import (
    AGGREGATION,
    EVALUATION,
    MODEL,
    PREDICTED,
    SLIDE_JOBS,
    TEST_JOBS,
    TRAINING,
    add_row,
    changed,
    edit_row,
    remove_row,
)

# One slide without and with its results being those of a test slide.
TEST_SLIDE = TEST_JOBS | EVALUATION
ANOTHER_TRUTH = {"truth": 1, "scores": 1, "confusion": 1, **EVALUATION}
ANOTHER_TRAINING_TRUTH = {"truth": 1, "patches": 1, **MODEL}


def move_slides(folder: Path) -> None:
    """Move all slides and annotations to another folder, and the sheet too."""
    (folder / "cohort").rename(folder / "archive")
    (folder / "cohort").mkdir()
    sheet = (folder / "archive" / "slides.tsv").read_text()
    (folder / "archive" / "slides.tsv").unlink()
    (folder / "cohort" / "slides.tsv").write_text(sheet.replace("cohort/", "archive/"))


def copy_slides(folder: Path) -> None:
    """Copy all slides and annotations; the copies have other times and inodes."""
    for path in (folder / "cohort").iterdir():
        shutil.copyfile(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)


def shuffle_rows(folder: Path) -> None:
    sheet = folder / "cohort" / "slides.tsv"
    comment, header, *rows = sheet.read_text().splitlines(True)
    sheet.write_text("".join([comment, header, *reversed(rows)]))


def add_slide(folder: Path, source: str, **cells: str) -> None:
    """Add a slide in front of the others, in their order too: a copy of `source` with a byte more."""
    copy = folder / "cohort" / "a-new-slide.tif"
    copy.write_bytes((folder / "cohort" / f"{source}.tif").read_bytes() + b"\0")
    add_row(folder, source, "a-new-slide", path="cohort/a-new-slide.tif", **cells)


def replace_slide(folder: Path, slide: str) -> None:
    path = folder / "cohort" / f"{slide}.tif"
    path.write_bytes(path.read_bytes() + b"\0")


def edit_annotation(folder: Path, slide: str) -> None:
    xml = folder / "cohort" / f"{slide}.xml"
    xml.write_text(xml.read_text().replace("<AnnotationGroups>", "<AnnotationGroups >"))


def touch_everything(folder: Path) -> None:
    for path in (folder / "cohort").iterdir():
        path.touch()


def delete_results(folder: Path, slide: str) -> None:
    shutil.rmtree(folder / "results" / "slides" / slide)


# What is done to the folder of a finished run, and the jobs that follow, whatever the number of slides a job.
EDITS: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "nothing": (Path.exists, {}),
    "rows in another order": (shuffle_rows, {}),
    "slides moved": (move_slides, {}),
    "slides copied": (copy_slides, {}),
    "everything touched": (touch_everything, {}),
    "test slide added": (lambda folder: add_slide(folder, "normal-3"), TEST_SLIDE),
    "training slide added": (lambda folder: add_slide(folder, "normal-1"), SLIDE_JOBS | {"patches": 1} | MODEL),
    "validation slide added": (
        lambda folder: add_slide(folder, "normal-1", split="validation"),
        SLIDE_JOBS | {"patches": 1} | MODEL,
    ),
    "test slide removed": (lambda folder: remove_row(folder, "normal-3"), EVALUATION),
    "validation slide removed": (lambda folder: remove_row(folder, "tumor-2"), MODEL),
    "test slide replaced": (lambda folder: replace_slide(folder, "normal-3"), TEST_SLIDE),
    "training slide replaced": (
        lambda folder: replace_slide(folder, "normal-1"),
        SLIDE_JOBS | {"patches": 1} | MODEL,
    ),
    "test annotation edited": (lambda folder: edit_annotation(folder, "tumor-3"), ANOTHER_TRUTH),
    "training annotation edited": (lambda folder: edit_annotation(folder, "tumor-1"), ANOTHER_TRAINING_TRUTH),
    "test slide not exhaustive": (lambda folder: edit_row(folder, "tumor-3", exhaustive="no"), ANOTHER_TRUTH),
    "training slide not exhaustive": (
        lambda folder: edit_row(folder, "tumor-1", exhaustive="no"),
        ANOTHER_TRAINING_TRUTH,
    ),
    "validation slide not exhaustive": (
        lambda folder: edit_row(folder, "tumor-2", exhaustive="no"),
        ANOTHER_TRAINING_TRUTH,
    ),
    "label removed": (lambda folder: edit_row(folder, "normal-3", label=""), ANOTHER_TRUTH),
    "label that contradicts": (lambda folder: edit_row(folder, "tumor-3", label="normal"), ANOTHER_TRUTH),
    "scale given": (lambda folder: edit_row(folder, "normal-3", mpp="0.6"), TEST_SLIDE),
    "tissue threshold given": (
        lambda folder: edit_row(folder, "normal-3", tissue_threshold="30"),
        {"tissue": 1, "heatmap": 1, "scores": 1, "confusion": 1, **EVALUATION},
    ),
    "centre given": (lambda folder: edit_row(folder, "normal-3", centre="south"), AGGREGATION),
    "test slide to validation": (
        lambda folder: edit_row(folder, "normal-3", split="validation"),
        {"patches": 1, **TRAINING, "heatmap": 1, "scores": 1, "confusion": 1, **EVALUATION},
    ),
    "test results deleted": (lambda folder: delete_results(folder, "normal-3"), TEST_SLIDE),
    "training results deleted": (
        lambda folder: delete_results(folder, "normal-1"),
        SLIDE_JOBS | {"patches": 1} | MODEL,
    ),
}


# Options of the config, by section, and the jobs that follow.
ALL_SLIDES = {"convert": 5, "tissue": 5, "truth": 5, "patches": 3, **MODEL}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "threshold": (
        changed(evaluation={"operating_point": {"threshold": 0.7}}),
        {"calibrate": 1, "confusion": 2, **EVALUATION},
    ),
    "youden": (
        changed(evaluation={"operating_point": {"rule": "youden"}}),
        {"heatmap": 1, "scores": 1, "calibration_manifest": 1, "calibrate": 1, "confusion": 2, **EVALUATION},
    ),
    "false positives": (
        changed(evaluation={"operating_point": {"rule": "false_positives_per_slide"}}),
        {"heatmap": 1, "scores": 1, "calibration_manifest": 1, "calibrate": 1, "confusion": 2, **EVALUATION},
    ),
    "forest": (
        changed(evaluation={"slide_level": {"score": "forest"}}),
        {"heatmap": 3, "scores": 3, **EVALUATION},
    ),
    "interval": (changed(evaluation={"interval": {"level": 0.9}}), AGGREGATION),
    "lesion level": (changed(evaluation={"lesion_level": {"method": "components"}}), {"scores": 2, **EVALUATION}),
    "label rule": (
        changed(evaluation={"patch_level": {"label_rule": "area_fraction"}}),
        {"scores": 2, "confusion": 2, **EVALUATION},
    ),
    "title": (changed(report={"title": "Other"}), {"report": 1, "all": 1}),
    "tissue": (changed(tissue={"method": "otsu_gray"}), {"tissue": 5, "patches": 3, **MODEL}),
    "truth": (changed(truth={"ignore_margin_um": 25}), {"truth": 5, "patches": 3, **MODEL}),
    "pyramid": (changed(pyramid={"codec": "zstd", "passthrough": False}), ALL_SLIDES),
    "patches": (changed(patches={"max_normal": 50}), {"patches": 3, **MODEL}),
    "training": (changed(training={"learning_rate": 2e-4}), {"train": 1, **PREDICTED, **EVALUATION}),
    "stride": (changed(heatmap={"stride_um": 20}), PREDICTED | EVALUATION),
    "orientations": (changed(heatmap={"orientations": True}), PREDICTED | EVALUATION),
    "slides per job": (changed(heatmap={"slides_per_job": 2}), {}),
    "smoothing": (changed(heatmap={"smoothing_um": 100}), PREDICTED | EVALUATION),
    "exclude a test slide": (changed(cohort={"exclude": ["tumor-3"]}), EVALUATION),
    "exclude a training slide": (changed(cohort={"exclude": ["normal-1"]}), MODEL),
}
