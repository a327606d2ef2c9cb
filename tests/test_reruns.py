"""Reruns: the jobs that a dry run lists after each kind of change to a finished cohort."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from helpers.reruns import ANOTHER_TRAINING_TRUTH, EDITS, OPTIONS, TEST_SLIDE, add_slide, replace_slide
from helpers.workflow import (
    AGGREGATION,
    BATCHED,
    EVALUATION,
    PREDICTED,
    TRAINING,
    add_row,
    changed,
    edit_row,
    new_snakemake,
    planned,
    remove_row,
    snakemake,
)
from wsi_pipeline.io.digests import digest_tree

pytestmark = pytest.mark.workflow


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_exactly_what_depends_on_it(run: Path, edit: str) -> None:
    change, jobs = EDITS[edit]
    change(run)
    assert planned(run) == jobs


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_the_same_with_several_slides_per_job(batched_run: Path, edit: str) -> None:
    change, jobs = EDITS[edit]
    change(batched_run)
    if "heatmap" in jobs:
        jobs = jobs | {"predict": 1}
        # The slides of a batch are predicted again together; a new slide has a batch of its own.
        if edit not in ("test slide added", "test slide to validation"):
            jobs |= PREDICTED
    assert planned(batched_run, BATCHED) == jobs


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
    assert planned(run, run=new_snakemake) == jobs


def test_a_frozen_model_is_kept_until_it_is_deleted(run: Path) -> None:
    shutil.copy(run / "cohort" / "normal-1.tif", run / "cohort" / "normal-4.tif")
    add_row(run, "normal-1", "normal-4", path="cohort/normal-4.tif")
    frozen = changed(training={"retrain": "frozen", "learning_rate": 0.5})
    # The sheet has changed, but the predictions are kept.
    assert planned(run, frozen) == {"convert": 1, "tissue": 1} | AGGREGATION
    (run / "results" / "model" / "inception_v3" / "model.json").unlink()
    assert planned(run, frozen)["train"] == 1


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_reruns_exactly_what_depends_on_it(run: Path, option: str) -> None:
    config, jobs = OPTIONS[option]
    assert planned(run, config) == jobs


@pytest.mark.slow
@pytest.mark.parametrize("option", ["stride", "orientations", "exclude a test slide", "tissue", "threshold"])
def test_an_option_reruns_the_same_with_several_slides_per_job(batched_run: Path, option: str) -> None:
    config, jobs = OPTIONS[option]
    config = config | {"heatmap": {**config.get("heatmap", {}), "slides_per_job": 2}}
    assert planned(batched_run, config) == jobs | ({"predict": 1} if "heatmap" in jobs else {})


@pytest.mark.slow
def test_slides_that_were_predicted_together_stay_together(batched_run: Path) -> None:
    for slides_per_job in (1, 3):
        assert planned(batched_run, changed(heatmap={"slides_per_job": slides_per_job})) == {}
    alone = changed(heatmap={"slides_per_job": 1, "stride_um": 20})
    assert planned(batched_run, alone) == {"predict": 1} | PREDICTED | EVALUATION


@pytest.mark.slow
def test_slides_that_were_predicted_alone_stay_alone(run: Path) -> None:
    config = changed(heatmap={"slides_per_job": 2, "stride_um": 20})
    assert planned(run, config) == PREDICTED | EVALUATION
    add_slide(run, "normal-3")
    assert planned(run, BATCHED) == {"predict": 1} | TEST_SLIDE
    result = snakemake(run, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert planned(run, config) == {}


@pytest.mark.slow
def test_a_batch_with_a_removed_slide_is_predicted_again(batched_run: Path) -> None:
    remove_row(batched_run, "normal-3")
    config = changed(heatmap={"slides_per_job": 2, "stride_um": 20})
    jobs = {"predict": 1, "heatmap": 1, "scores": 1, "confusion": 1, **EVALUATION}
    assert planned(batched_run, config) == jobs
    # The rest of the batch is a new one where the results of the removed slide are gone.
    shutil.rmtree(batched_run / "results" / "slides" / "normal-3")
    assert planned(batched_run, config) == jobs
    result = snakemake(batched_run, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert planned(batched_run, config) == {}


def swap_last_layer(weights: Path) -> None:
    """Exchange the two classes: other weights of the same size."""
    state = load_file(weights)
    save_file({name: tensor.flip(0) if name.startswith("fc.") else tensor for name, tensor in state.items()}, weights)


@pytest.mark.slow
def test_given_weights_are_tracked_by_content(run: Path) -> None:
    given = Path(shutil.copytree(run / "results" / "model" / "inception_v3", run / "theirs"))
    config = changed(training={"weights": "theirs/weights.safetensors"})
    result = snakemake(run, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert planned(run, config) == {}
    (given / "weights.safetensors").touch()
    (given / "model.json").touch()
    assert planned(run, config) == {}
    given.rename(run / "moved")
    assert "training.weights: theirs/weights.safetensors: no such file" in snakemake(run, config=config).stderr
    config = changed(training={"weights": "moved/weights.safetensors"})
    assert planned(run, config) == {}
    # A copy, as the file is a link to that of other runs of this cohort.
    swap_last_layer(Path(shutil.copyfile(run / "moved" / "weights.safetensors", run / "moved" / "other.safetensors")))
    (run / "moved" / "other.safetensors").replace(run / "moved" / "weights.safetensors")
    assert planned(run, config) == {"train": 1, **PREDICTED, **EVALUATION}
    result = snakemake(run, "--rerun-triggers", "mtime", "--forcerun", "evaluate", config=config)
    assert result.returncode == 1
    log = (run / "results" / "logs" / "evaluate" / "inception_v3.log").read_text()
    assert "results/model/inception_v3/model.json (made from other weights than those in the config)" in log


@pytest.mark.slow
def test_weights_to_start_from_are_tracked_by_content(run: Path) -> None:
    model = "results/model/inception_v3/model.json"
    shutil.copyfile(run / "results" / "model" / "inception_v3" / "weights.safetensors", run / "start.safetensors")
    config = changed(training={"start": "start.safetensors"})
    result = snakemake(run, model, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    everything_after = PREDICTED | EVALUATION
    assert planned(run, config) == everything_after
    (run / "start.safetensors").rename(run / "moved.safetensors")
    (run / "moved.safetensors").touch()
    config = changed(training={"start": "moved.safetensors"})
    assert planned(run, config) == everything_after
    swap_last_layer(run / "moved.safetensors")
    assert planned(run, config) == {"train": 1, **everything_after}


def test_a_file_in_two_splits_is_refused(run: Path) -> None:
    (run / "cohort" / "link.tif").symlink_to(run / "cohort" / "normal-1.tif")
    (run / "cohort" / "copy.tif").write_bytes((run / "cohort" / "normal-1.tif").read_bytes())
    for path in ("cohort/normal-1.tif", "cohort/link.tif", "cohort/copy.tif"):
        edit_row(run, "normal-3", path=path)
        result = snakemake(run, "--dry-run")
        assert result.returncode == 1
        message = f"slides normal-1 (train: cohort/normal-1.tif) and normal-3 (test: {path}) are the same file. Keep"
        assert message in result.stdout + result.stderr


def test_lost_records_do_not_hide_a_change(run: Path) -> None:
    shutil.rmtree(run / ".snakemake")
    assert planned(run) == {}
    edit_row(run, "tumor-1", exhaustive="no")
    replace_slide(run, "normal-3")
    result = snakemake(run, "--dry-run", config=changed(heatmap={"stride_um": 20}))
    assert result.returncode == 1
    output = result.stdout + result.stderr
    assert "Snakemake's records of these results (.snakemake) are missing, and " in output
    for problem in (
        "slide tumor-1: results/slides/tumor-1/truth.json (exhaustive was True, is False)",
        "slide normal-3: results/slides/normal-3/pyramid.json (made from another file than cohort/normal-3.tif)",
        "slide tumor-3: results/heatmaps/inception_v3/tumor-3.json (stride_um was None, is 20",
    ):
        assert problem in output
    # The command that the error names.
    for file in output.split("computed again: rm ")[1].split("\n")[0].split():
        (run / file).unlink()
    assert planned(run, changed(heatmap={"stride_um": 20})) == TEST_SLIDE | ANOTHER_TRAINING_TRUTH | {"truth": 2}


@pytest.mark.slow
def test_copied_results_are_adopted_by_touching_them(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copyfile))
    shutil.rmtree(folder / ".snakemake")
    (folder / "results" / "slides" / "normal-1" / "pyramid.json").touch()
    assert planned(folder) != {}
    result = snakemake(folder, "--touch", "--forceall")
    assert result.returncode == 0, result.stdout + result.stderr
    assert planned(folder) == {}
    assert planned(folder, changed(heatmap={"stride_um": 20})) == PREDICTED | EVALUATION


@pytest.mark.slow
def test_results_of_two_configs_are_never_pooled(run: Path) -> None:
    metrics = run / "results" / "evaluation" / "inception_v3" / "metrics.json"
    before = metrics.read_bytes()
    add_slide(run, "normal-3")
    config = changed(heatmap={"stride_um": 20})
    result = snakemake(run, "--rerun-triggers", "mtime", config=config)
    assert result.returncode == 1
    log = (run / "results" / "logs" / "evaluate" / "inception_v3.log").read_text()
    assert "2 results do not belong to this config and sheet: slide normal-3: results/heatmaps/" in log
    assert not metrics.exists() or metrics.read_bytes() == before
    # The command that the error names.
    files = log.split("--forcerun ")[1].split()
    result = snakemake(run, "--forcerun", *files, config=config)
    assert result.returncode == 0, result.stderr
    assert planned(run, config) == {}
