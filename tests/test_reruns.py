"""Reruns: the jobs that a dry run lists after each kind of change to a finished cohort."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.workflow import (
    AGGREGATION,
    BATCHED,
    CONFIG,
    EVALUATION,
    MODEL,
    PREDICTED,
    SLIDE_JOBS,
    TEST_JOBS,
    TRAINING,
    add_row,
    changed,
    edit_row,
    planned,
    planned_snakemake,
    remove_row,
    snakemake,
)
from wsi_pipeline.io.digests import digest_tree

pytestmark = pytest.mark.workflow


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
    "forest": (
        changed(evaluation={"slide_level": {"score": "forest"}}),
        {"heatmap": 3, "scores": 3, **EVALUATION},
    ),
    "resamples": (changed(evaluation={"interval": {"resamples": 200}}), AGGREGATION),
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
    "training": (changed(training={"learning_rate": 2e-3}), {"train": 1, **PREDICTED, **EVALUATION}),
    "stride": (changed(heatmap={"stride_um": 20}), PREDICTED | EVALUATION),
    "orientations": (changed(heatmap={"orientations": True}), PREDICTED | EVALUATION),
    "smoothing": (changed(heatmap={"smoothing_um": 100}), PREDICTED | EVALUATION),
    "exclude a test slide": (changed(cohort={"exclude": ["tumor-3"]}), EVALUATION),
    "exclude a training slide": (changed(cohort={"exclude": ["normal-1"]}), MODEL),
}


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


def test_a_file_in_two_splits_is_refused(run: Path) -> None:
    (run / "cohort" / "link.tif").symlink_to(run / "cohort" / "normal-1.tif")
    (run / "cohort" / "copy.tif").write_bytes((run / "cohort" / "normal-1.tif").read_bytes())
    for path in ("cohort/normal-1.tif", "cohort/link.tif", "cohort/copy.tif"):
        edit_row(run, "normal-3", path=path)
        result = planned_snakemake(run, "--dry-run")
        assert result.returncode == 1
        message = f"slides normal-1 (train: cohort/normal-1.tif) and normal-3 (test: {path}) are the same file. Keep"
        assert message in result.stdout + result.stderr


def test_lost_records_do_not_hide_a_change(run: Path) -> None:
    shutil.rmtree(run / ".snakemake")
    assert planned(run) == {}
    edit_row(run, "tumor-1", exhaustive="no")
    replace_slide(run, "normal-3")
    result = planned_snakemake(run, "--dry-run", config=changed(heatmap={"stride_um": 20}))
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


def check_against_a_run_from_scratch(folder: Path, scratch: Path, config: dict[str, Any]) -> None:
    """Nothing remains to be done, and the figures are those of a first run of the same sheet and config."""
    assert planned(folder, config) == {}
    for name in ("cohort", "archive"):
        if (folder / name).is_dir():
            shutil.copytree(folder / name, scratch / name)
    result = snakemake(scratch, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = Path("results") / "evaluation" / "inception_v3" / "metrics.json"
    assert (folder / metrics).read_bytes() == (scratch / metrics).read_bytes()


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(edit, marks=pytest.mark.slow if edit == "rows in another order" else pytest.mark.nightly)
        for edit in EDITS
        if edit != "label that contradicts"
    ],
)
def test_after_an_edit_the_figures_are_those_from_scratch(run: Path, tmp_path: Path, edit: str) -> None:
    EDITS[edit][0](run)
    result = snakemake(run)
    assert result.returncode == 0, result.stdout + result.stderr
    check_against_a_run_from_scratch(run, tmp_path / "scratch", CONFIG)


@pytest.mark.nightly
@pytest.mark.parametrize("option", OPTIONS)
def test_after_a_change_of_options_the_figures_are_those_from_scratch(run: Path, tmp_path: Path, option: str) -> None:
    config = OPTIONS[option][0]
    result = snakemake(run, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    check_against_a_run_from_scratch(run, tmp_path / "scratch", config)


def edit_at_random(folder: Path, config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Apply one random edit to the cohort or to the config; returns the config."""
    slide = rng.choice(["normal-1", "tumor-1", "tumor-2", "normal-3", "tumor-3"])
    options: list[dict[str, dict[str, Any]]] = [
        {"heatmap": {"stride_um": rng.choice([20, 40])}},
        {"heatmap": {"smoothing_um": rng.choice([0, 50])}},
        {"heatmap": {"slides_per_job": rng.choice([1, 2])}},
        {"tissue": {"method": rng.choice(["otsu_gray", "otsu_saturation"])}},
        {"truth": {"ignore_margin_um": rng.choice([0, 25])}},
        {"training": {"learning_rate": rng.choice([1e-3, 2e-3])}},
        {"evaluation": {"operating_point": {"threshold": rng.choice([0.5, 0.7])}}},
        {"cohort": {"exclude": rng.choice([[], ["normal-3"]])}},
    ]
    edits: list[Callable[[], object]] = [
        lambda: shuffle_rows(folder),
        lambda: copy_slides(folder),
        lambda: touch_everything(folder),
        lambda: replace_slide(folder, slide),
        lambda: edit_row(folder, slide, exhaustive=rng.choice(["yes", "no"])),
        lambda: edit_row(folder, slide, tissue_threshold=rng.choice(["", "20"])),
        lambda: edit_row(folder, slide, centre=rng.choice(["", "north", "south"])),
        lambda: edit_row(folder, "normal-3", label=rng.choice(["", "normal"])),
        lambda: delete_results(folder, slide),
    ]
    number = rng.randrange(len(options) + len(edits))
    if number >= len(options):
        edits[number - len(options)]()
        return config
    (section, values), *_ = options[number].items()
    return config | {section: {**config.get(section, {}), **values}}


@pytest.mark.parametrize(
    "steps", [pytest.param(3, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.nightly)]
)
def test_a_random_walk_ends_with_the_figures_from_scratch(run: Path, tmp_path: Path, steps: int) -> None:
    rng = random.Random(steps)  # noqa: S311
    config = CONFIG
    for step in range(steps):
        config = edit_at_random(run, config, rng)
        result = snakemake(run, config=config)
        assert result.returncode == 0, f"step {step}: {result.stdout}{result.stderr}"
        assert planned(run, config) == {}, f"step {step}"
    check_against_a_run_from_scratch(run, tmp_path / "scratch", config)
