"""Reruns: the jobs that a dry run lists after each kind of change to a finished cohort."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.workflow import (
    AGGREGATION,
    EVALUATION,
    SLIDE_JOBS,
    TEST_JOBS,
    TRAINING,
    add_row,
    changed,
    planned,
    remove_row,
    snakemake,
)
from wsi_pipeline.io.digests import digest_tree

pytestmark = pytest.mark.workflow

PREDICTED = {"heatmap": 2, "scores": 2, "confusion": 2}


def test_nothing_changed_means_nothing_to_do(run: Path) -> None:
    assert planned(run) == {}


def test_a_new_test_slide_runs_only_its_own_jobs_and_the_aggregation(run: Path) -> None:
    shutil.copy(run / "cohort" / "normal-3.tif", run / "cohort" / "normal-4.tif")
    add_row(run, "normal-3", "normal-4", path="cohort/normal-4.tif")
    assert planned(run) == TEST_JOBS | EVALUATION


def test_a_new_training_slide_reruns_training_and_later_stages(run: Path) -> None:
    shutil.copy(run / "cohort" / "normal-1.tif", run / "cohort" / "normal-4.tif")
    add_row(run, "normal-1", "normal-4", path="cohort/normal-4.tif")
    after = {"heatmap": 2, "scores": 2, "confusion": 2}
    assert planned(run) == SLIDE_JOBS | {"patches": 1} | TRAINING | after | EVALUATION


def test_removing_a_slide_reruns_only_what_depended_on_it(run: Path) -> None:
    remove_row(run, "normal-3")
    assert planned(run) == EVALUATION
    remove_row(run, "tumor-2")
    assert planned(run) == TRAINING | {"heatmap": 1, "scores": 1, "confusion": 1} | EVALUATION


def test_replacing_a_slide_file_reruns_its_jobs(run: Path) -> None:
    shutil.copyfile(run / "cohort" / "normal-1.tif", run / "cohort" / "normal-3.tif")
    assert planned(run) == TEST_JOBS | EVALUATION


@pytest.mark.slow
def test_a_deleted_store_is_recreated_when_needed_even_with_its_receipt(run: Path) -> None:
    store = run / "results" / "heatmaps" / "inception_v3" / "tumor-3.ome.zarr"
    before = digest_tree(store)
    shutil.rmtree(store)
    assert planned(run) == {}
    config = changed(evaluation={"operating_point": {"threshold": 0.7}})
    evaluated = {"calibrate": 1, "heatmap": 1, "scores": 1, "confusion": 2}
    assert planned(run, config) == evaluated | EVALUATION
    result = snakemake(run, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert digest_tree(store) == before
    assert planned(run, config) == {}


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ("HeatmapRun", PREDICTED | EVALUATION),
        ("ManifestRun", TRAINING | PREDICTED | EVALUATION),
    ],
)
def test_a_raised_step_version_reruns_its_stage(
    run: Path, monkeypatch: pytest.MonkeyPatch, options: str, jobs: dict[str, int]
) -> None:
    (run / "raised").mkdir()
    (run / "raised" / "sitecustomize.py").write_text(
        f"from wsi_pipeline.config.stages import {options}\n{options}.step_version += 1\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(run / "raised"))
    # A new process, because `planned_snakemake` keeps the environment of its first call.
    assert planned(run, run_snakemake=snakemake) == jobs


def test_a_frozen_model_is_kept_until_it_is_deleted(run: Path) -> None:
    shutil.copy(run / "cohort" / "normal-1.tif", run / "cohort" / "normal-4.tif")
    add_row(run, "normal-1", "normal-4", path="cohort/normal-4.tif")
    frozen = changed(training={"retrain": "frozen", "learning_rate": 0.5})
    # The sheet has changed, but the predictions are kept.
    assert planned(run, frozen) == {"convert": 1, "tissue": 1} | AGGREGATION
    (run / "results" / "model" / "inception_v3" / "model.json").unlink()
    assert planned(run, frozen)["train"] == 1


@pytest.mark.parametrize(
    ("config", "jobs"),
    [
        (changed(evaluation={"operating_point": {"threshold": 0.7}}), {"calibrate": 1, "confusion": 2, **EVALUATION}),
        (
            changed(evaluation={"operating_point": {"rule": "youden"}}),
            {"heatmap": 1, "scores": 1, "calibration_manifest": 1, "calibrate": 1, "confusion": 2, **EVALUATION},
        ),
        (
            changed(evaluation={"slide_level": {"score": "forest"}}),
            {"heatmap": 3, "scores": 3, **EVALUATION},
        ),
        (changed(report={"title": "Other"}), {"report": 1, "all": 1}),
        (
            changed(tissue={"method": "otsu_gray"}),
            {"tissue": 5, "patches": 3, "heatmap": 2, "scores": 2, "confusion": 2} | TRAINING | EVALUATION,
        ),
        (changed(evaluation={"interval": {"resamples": 200}}), AGGREGATION),
        (changed(cohort={"exclude": ["tumor-3"]}), EVALUATION),
    ],
    ids=["threshold", "youden", "forest", "title", "tissue", "resamples", "exclude"],
)
def test_a_changed_option_reruns_only_the_stages_that_use_it(
    run: Path, config: dict[str, Any], jobs: dict[str, int]
) -> None:
    assert planned(run, config) == jobs


def test_a_changed_annotation_reruns_its_slide(run: Path) -> None:
    xml = run / "cohort" / "tumor-3.xml"
    xml.write_text(xml.read_text().replace("<AnnotationGroups>", "<AnnotationGroups >"))
    assert planned(run) == {"truth": 1, "scores": 1, "confusion": 1, **EVALUATION}
