"""Threshold and temperature from validation slides, and the evaluation of test slides with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn import metrics as sk

from helpers.evaluated import MODEL, SHEET, SLIDES, counted, drawn_maps, evaluate_inputs, maps, write_slide
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import CalibrateRun, EvaluateRun
from wsi_pipeline.errors import ConfigError, StoreError
from wsi_pipeline.masks.label_images import TUMOR
from wsi_pipeline.stages import calibrate, evaluate

# Validation slides differ from the test slides in maps and number: each figure shows on which split it was computed.
VALIDATION = {
    "v-n1": ("normal", None),
    "v-t1": ("tumor", (slice(2, 5), slice(1, 4))),
    "v-t2": ("tumor", (slice(0, 2), slice(2, 8))),
}
COHORT = Sheet(
    {**SHEET, **{s: SlideRow(s, f"{s}.tif", "validation", label=label) for s, (label, _) in VALIDATION.items()}}
)


def validation_maps(slide: str) -> tuple[np.ndarray, np.ndarray]:
    return drawn_maps(slide, VALIDATION[slide][1])


def run_calibrate(root: Path, out: Path, sheet: Sheet = COHORT, **options: Any) -> dict[str, Any]:
    inputs = calibrate.Inputs(root / "scores", root / "detections")
    calibrate.run(sheet, inputs, calibrate.Outputs(out), CalibrateRun.model_validate(options))
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def cohort(tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation slides, the threshold and the temperature chosen on them, and test slides at this threshold."""
    root = tmp_path_factory.mktemp("cohort")
    for slide in VALIDATION:
        write_slide(root, tissue_slide / "pyramid.ome.zarr", slide, *validation_maps(slide))
    run_calibrate(
        root, root / "calibration.json", operating_point={"rule": "youden"}, calibration={"temperature": True}
    )
    for slide in SLIDES:
        write_slide(root, tissue_slide / "pyramid.ome.zarr", slide, *maps(slide))
    return root


def pooled(found: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    parts = [(heat[np.isfinite(heat)], truth[np.isfinite(heat)] == TUMOR) for heat, truth in found]
    scores, truth = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return counted(scores), truth


@pytest.mark.parametrize(
    ("rule", "merit"),
    [
        ("youden", lambda truth, called: called[truth].mean() - called[~truth].mean()),
        ("max_f1", sk.f1_score),
        ("sensitivity", lambda truth, called: (called[truth].mean() >= 0.9) - called.mean()),
    ],
)
def test_the_threshold_is_the_best_on_the_validation_slides(
    cohort: Path, tmp_path: Path, rule: str, merit: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    facts = run_calibrate(cohort, tmp_path / "c.json", operating_point={"rule": rule, "sensitivity": 0.9})
    point = facts["operating_point"]
    scores, truth = pooled(map(validation_maps, VALIDATION))
    best = max(merit(truth, scores >= t) for t in np.unique(scores))
    assert merit(truth, scores >= point["threshold"]) == pytest.approx(best)
    assert point["threshold"] == expit(point["threshold_log_odds"])
    assert (point["chosen_on"], point["slides"]) == ("validation slides", list(VALIDATION))
    assert (point["n_normal"], point["n_tumor"]) == ((~truth).sum(), truth.sum())
    assert point["sensitivity_there"] == pytest.approx((scores[truth] >= point["threshold"]).mean())
    assert facts["model_sha256"] == MODEL


def test_the_threshold_allows_the_requested_false_positives_per_slide(cohort: Path, tmp_path: Path) -> None:
    wanted = {"rule": "false_positives_per_slide", "false_positives_per_slide": 0.5}
    point = run_calibrate(cohort, tmp_path / "c.json", operating_point=wanted)["operating_point"]
    found = [json.loads((cohort / "detections" / f"{s}.json").read_text()) for s in VALIDATION]
    wrong = np.array([c for one in found for c in one["false_positives"]])
    threshold = point["threshold_log_odds"]
    assert (wrong >= threshold).sum() <= 0.5 * len(VALIDATION) < (wrong >= threshold - 0.3).sum()
    assert point["false_positives_per_slide_there"] == (wrong >= threshold).sum() / len(VALIDATION)
    assert (point["slides"], point["n_slides_with_lesions_known"]) == (list(VALIDATION), len(VALIDATION))
    assert point["n_lesions"] == 2


def test_a_fixed_threshold_needs_no_slides(tmp_path: Path) -> None:
    facts = run_calibrate(tmp_path / "nothing", tmp_path / "c.json", operating_point={"threshold": 0.3})
    fixed = {"rule": "fixed", "threshold": 0.3, "threshold_log_odds": logit(0.3), "chosen_on": "given in the config"}
    assert facts["operating_point"] == fixed
    assert facts["model_sha256"] is None
    assert facts["temperature"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operating_point": {"rule": "youden"}}, "youden needs normal and tumour patches .* no tumour"),
        ({"calibration": {"temperature": True}}, "a temperature needs normal and tumour patches"),
        ({"operating_point": {"rule": "false_positives_per_slide"}}, "has no detection on 1 fully annotated"),
    ],
)
def test_unusable_validation_slides_are_an_error(
    tissue_slide: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "n", *(np.full((6, 8), 0.2), np.zeros((6, 8), np.uint8)))
    sheet = Sheet({"n": SlideRow("n", "", "validation", label="normal")})
    with pytest.raises(ConfigError, match=message):
        run_calibrate(tmp_path, tmp_path / "c.json", sheet, **options)
    assert not (tmp_path / "c.json").exists()


def test_slides_of_two_models_are_refused(tissue_slide: Path, tmp_path: Path) -> None:
    for slide, model in (("v-n1", "a" * 64), ("v-t1", "b" * 64)):
        maps_of = validation_maps(slide)
        write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", slide, *maps_of, model=model, test=False)
    sheet = Sheet({s: COHORT[s] for s in ("v-n1", "v-t1")})
    with pytest.raises(StoreError, match="v-n1 was predicted by the model aaaaaaaaaaaa, v-t1 by bbbbbbbbbbbb"):
        run_calibrate(tmp_path, tmp_path / "c.json", sheet, operating_point={"rule": "youden"})


def run_evaluate(root: Path, out: Path, calibration: str = "calibration.json") -> dict[str, Any]:
    evaluate.run(COHORT, evaluate_inputs(root, root / calibration), evaluate.Outputs(out), EvaluateRun())
    return json.loads((out / "metrics.json").read_text())


def test_test_slides_are_evaluated_at_the_chosen_threshold(cohort: Path, tmp_path: Path) -> None:
    metrics = run_evaluate(cohort, tmp_path)
    assert metrics["cohort"]["test_slides"] == list(SLIDES)
    point = json.loads((cohort / "calibration.json").read_text())["operating_point"]
    assert metrics["operating_point"] == point
    scores, truth = pooled(map(maps, SLIDES))
    called = scores >= point["threshold"]
    assert metrics["confusion"]["sensitivity"] == pytest.approx(called[truth].mean())
    assert metrics["confusion"]["specificity"] == pytest.approx((~called)[~truth].mean())
    own = json.loads((cohort / "confusion" / "t1.json").read_text())
    assert (own["threshold"], own["threshold_log_odds"]) == (point["threshold"], point["threshold_log_odds"])
    assert sum(own["share_of_total"].values()) == pytest.approx(1)


def test_calibration_is_also_reported_at_the_temperature(cohort: Path, tmp_path: Path) -> None:
    calibration = run_evaluate(cohort, tmp_path)["calibration"]
    there = calibration["at_temperature"]
    scores, truth = pooled(map(maps, SLIDES))
    fitted = there["temperature"]

    def scaled(scores: np.ndarray, temperature: float) -> np.ndarray:
        return 1 / (1 + np.exp(-np.log(scores / (1 - scores)) / temperature))

    wanted = np.mean((scaled(scores, fitted["value"]) - truth) ** 2)
    assert there["brier_score"] == pytest.approx(wanted, abs=1e-5)
    assert calibration["brier_score"] == pytest.approx(np.mean((scores - truth) ** 2), abs=1e-6)
    chosen_on, tumor = pooled(map(validation_maps, VALIDATION))
    before, after, colder, hotter = (
        sk.log_loss(tumor, scaled(chosen_on, fitted["value"] ** power)) for power in (0, 1, 0.98, 1.02)
    )
    assert (fitted["cross_entropy_before"], fitted["cross_entropy_after"]) == pytest.approx((before, after), abs=1e-5)
    assert after < min(before, colder, hotter)
    assert (fitted["fitted_on"], fitted["slides"]) == ("validation slides", list(VALIDATION))
    assert (fitted["n_slides"], fitted["n_patches"]) == (len(VALIDATION), len(chosen_on))
    assert there["brier_score_interval"][0] < there["brier_score"] < there["brier_score_interval"][1]


def test_slides_scored_at_another_threshold_are_refused(cohort: Path, tmp_path: Path) -> None:
    run_calibrate(cohort, cohort / "other.json", operating_point={"threshold": 0.123})
    with pytest.raises(StoreError, match=r"slide n1: .* at the threshold .*other\.json has 0\.123"):
        run_evaluate(cohort, tmp_path, "other.json")


def test_a_threshold_chosen_for_another_model_is_refused(cohort: Path, tissue_slide: Path, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_bytes((cohort / "calibration.json").read_bytes())
    with pytest.raises(StoreError, match="slide n1 was predicted by the model bbbbbbbbbbbb, but the operating point"):
        write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "n1", *maps("n1"), model="b" * 64)
