"""Reruns end with the figures of a run from scratch, whatever was changed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.reruns import EDITS, OPTIONS, copy_slides, delete_results, replace_slide, shuffle_rows, touch_everything
from helpers.workflow import CONFIG, changed, edit_row, planned, snakemake, started_snakemake

pytestmark = pytest.mark.workflow


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
        {"tissue": {"method": rng.choice(["glass_saturation", "otsu_saturation"])}},
        {"truth": {"ignore_margin_um": rng.choice([0, 25])}},
        {"training": {"learning_rate": rng.choice([1e-4, 2e-4])}},
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


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_is_finished_by_the_next(run: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    config = changed(truth={"ignore_margin_um": 25})
    for _ in range(4):
        process = started_snakemake(run, "--rerun-incomplete", config=config)
        assert process.stderr is not None
        finished_jobs = rng.randrange(6)
        while finished_jobs and (line := process.stderr.readline()):
            finished_jobs -= line.startswith("Finished jobid")
        time.sleep(rng.uniform(0, 3))
        # As a power failure or a killed allocation does: Snakemake and its jobs end without a chance to clean up.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert snakemake(run, "--unlock", config=config).returncode == 0
    result = snakemake(run, "--rerun-incomplete", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    check_against_a_run_from_scratch(run, tmp_path / "scratch", config)
