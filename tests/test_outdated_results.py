"""Receipts that do not belong to the config, the sheet or the slides of a run are found, one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.workflow import CONFIG, edit_row, remove_row
from wsi_pipeline.cohort.sheet import load_sheet
from wsi_pipeline.config import STAGES
from wsi_pipeline.config.loading import load_config, options_json
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.outdated_results import Expected, check_results, outdated_slides
from wsi_pipeline.io.fingerprints import Fingerprints
from wsi_pipeline.io.layout import Layout

pytestmark = pytest.mark.workflow

SLIDES = ("convert", "tissue", "truth", "patches", "heatmap", "scores", "detect", "confusion")
COHORT = ("train", "calibrate", "evaluate")
STAGE_OF = {"pyramid": "convert", "truth": "truth", "patches": "patches"}
EVERY = {"normal-1", "tumor-1", "tumor-2", "normal-3", "tumor-3"}


@pytest.fixture
def expected(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Expected]:
    """What the finished run is expected to be computed from, read when it is called in its folder."""
    monkeypatch.chdir(run)
    config = load_config(CONFIG)

    def read() -> Expected:
        options = {stage: json.loads(options_json(STAGES[stage].of(config))) for stage in (*SLIDES, *COHORT)}
        results = Path("results")
        layout = Layout(results, "inception_v3")
        sheet = load_sheet(Path("cohort/slides.tsv"))
        return Expected(sheet, layout, options, ["test"], Fingerprints.of_results(results))

    return read


def edit(path: str, **values: Any) -> None:
    """Change values of a receipt; those of `options` one by one."""
    file = Path("results") / path
    content = json.loads(file.read_text())
    options = {**content["options"], **values.pop("options", {})}
    file.write_text(json.dumps({**content, **values, "options": options}))


def append(path: str) -> None:
    with Path(path).open("ab") as file:
        file.write(b"\n")


# An edit, the slides with outdated results after it, and the reason.
EDITS: list[tuple[Callable[[], object], set[str], str]] = [
    (lambda: edit("slides/normal-1/pyramid.json", step_version=1), {"normal-1"}, "step_version was 1, is "),
    (lambda: edit("slides/normal-3/tissue.json", options={"mpp": 4.0}), {"normal-3"}, "mpp was 4.0, is 8.0"),
    (lambda: edit_row(Path(), "normal-3", tissue_threshold="30"), {"normal-3"}, "threshold was None, is 30"),
    (lambda: edit("slides/tumor-2/patches.json", options={"seed": 2}), {"tumor-2"}, "seed was 2, is 1"),
    (lambda: edit("slides/tumor-2/patches.json", store_sha256="0"), EVERY, "trained on other patches of slide tumor-2"),
    (lambda: edit_row(Path(), "tumor-1", exhaustive="no"), {"tumor-1"}, "exhaustive was True, is False"),
    (
        lambda: edit_row(Path(), "tumor-3", annotation_origin="bounds"),
        {"tumor-3"},
        "annotation_origin was None, is bounds",
    ),
    (lambda: edit_row(Path(), "normal-3", mpp="0.6"), {"normal-3"}, "mpp was None, is 0.6"),
    (lambda: edit_row(Path(), "normal-3", label=""), {"normal-3"}, "label was normal, is None"),
    (lambda: edit_row(Path(), "tumor-3", annotation=""), {"tumor-3"}, "drawn from another annotation than None"),
    (lambda: append("cohort/tumor-3.xml"), {"tumor-3"}, "drawn from another annotation than cohort/tumor-3.xml"),
    (lambda: append("cohort/tumor-3.tif"), {"tumor-3"}, "made from another file than cohort/tumor-3.tif"),
    (
        lambda: edit("heatmaps/inception_v3/tumor-3.json", options={"stride_um": 9.0}),
        {"tumor-3"},
        "stride_um was 9.0, is ",
    ),
    (lambda: edit("scores/inception_v3/tumor-3.json", model_sha256="0"), {"tumor-3"}, "predicted by another model"),
    (lambda: edit("model/inception_v3/model.json", weights_sha256="0"), {"normal-3", "tumor-3"}, "another model"),
    (lambda: edit("model/inception_v3/model.json", options={"max_steps": 9}), EVERY, "max_steps was 9, is 4"),
    (lambda: edit("calibration/inception_v3.json", options={"operating_point": {}}), EVERY, "operating_point was {}"),
    (lambda: remove_row(Path(), "normal-1"), EVERY - {"normal-1"}, "trained with normal-1, which is no training slide"),
    (lambda: edit("detections/inception_v3/normal-3.json", options={"itc_um": 1.0}), {"normal-3"}, "itc_um was 1.0"),
    (
        lambda: edit("confusion/inception_v3/normal-3.json", options={"label_rule": "area_fraction"}),
        {"normal-3"},
        "label_rule was area_fraction, is centre_nearest",
    ),
    (lambda: Path("results/slides/tumor-3/truth.json").unlink(), {"tumor-3"}, "missing or damaged"),
]


def test_results_of_a_finished_run_belong_together(expected: Callable[[], Expected]) -> None:
    check_results(expected())
    assert outdated_slides(expected()) == set()


def test_validation_slides_are_checked_where_they_are_predicted(expected: Callable[[], Expected]) -> None:
    # The tiny cohort predicts test slides only.
    assert outdated_slides(replace(expected(), predicted_splits=["test", "validation"])) == {"tumor-2"}


def test_a_model_that_was_trained_on_a_test_slide_is_refused(expected: Callable[[], Expected]) -> None:
    edit_row(Path(), "normal-1", split="test")
    with pytest.raises(StoreError, match=r"slide normal-1: in the split test, but the model .* was trained on it"):
        check_results(expected())
    assert outdated_slides(expected()) == EVERY


def test_receipts_of_an_earlier_version_may_lack_fields(expected: Callable[[], Expected]) -> None:
    for name in ("slides/normal-3/pyramid.json", "slides/normal-3/truth.json", "slides/tumor-2/patches.json"):
        (Path("results") / name).write_text(json.dumps({"stage": STAGE_OF[Path(name).stem], "step_version": 1}))
    assert outdated_slides(expected()) == {"normal-3", "tumor-2"}


def test_figures_of_other_options_or_rows_are_found_before_jobs(expected: Callable[[], Expected]) -> None:
    check_results(expected(), before_jobs=True)
    options = {**expected().options, "evaluate": {**expected().options["evaluate"], "seed": 9}}
    with pytest.raises(StoreError, match=r"metrics.json \(computed for other options or another sheet\)"):
        check_results(replace(expected(), options=options), before_jobs=True)
    edit_row(Path(), "normal-3", centre="south")
    with pytest.raises(StoreError, match=r"computed again: rm results/evaluation/inception_v3/metrics.json$"):
        check_results(expected(), before_jobs=True)


@pytest.mark.parametrize("number", range(len(EDITS)))
def test_each_kind_of_outdated_result_is_named(expected: Callable[[], Expected], number: int) -> None:
    change, slides, reason = EDITS[number]
    change()
    assert outdated_slides(expected()) == slides
    with pytest.raises(StoreError) as caught:
        check_results(expected())
    message = str(caught.value)
    assert reason in message
    assert slides >= EVERY - {"normal-1"} or all(f"slide {slide}: results/" in message for slide in slides)
    assert "snakemake --forcerun results/" in message
