"""A network whose probabilities are all 1 in float64: log odds from the prediction to the figures, without a tie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from helpers import predicting
from helpers.receipts import write_truth_receipt
from helpers.slides import tissue_picture, write_tiff
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import (
    CalibrateRun,
    ConfusionRun,
    ConvertRun,
    DetectRun,
    EvaluateRun,
    HeatmapRun,
    PredictRun,
    ScoresRun,
    SlideLevelOptions,
    TissueRun,
)
from wsi_pipeline.masks.label_images import TUMOR
from wsi_pipeline.metrics.steps import quantize
from wsi_pipeline.model.augment import ORIENTATIONS, orient
from wsi_pipeline.model.predictor import log_odds
from wsi_pipeline.model.slide_prediction import TrainedModel
from wsi_pipeline.pyramid.heatmap_store import read_log_odds, read_tissue
from wsi_pipeline.pyramid.ome_zarr import Image, read_image, write_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import DetectReceipt
from wsi_pipeline.stages import calibrate, confusion, convert, detect, evaluate, heatmap, predict, scores, tissue

pytestmark = pytest.mark.slow

STRIDE_UM = 50.0
TRUTH_MPP = 8.0
SLIDES = ("a", "b", "c", "d")
RADIUS_UM = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log odds of about 100 to 400 on the slides below."""
    return predicting.write_model(tmp_path_factory.mktemp("model"), confidence=1000, shift=400)


@pytest.fixture(scope="module")
def predicted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides of different colour and their heatmaps."""
    root = tmp_path_factory.mktemp("predicted")
    for number, slide in enumerate(SLIDES):
        picture = np.clip(tissue_picture(1000, 900).astype(int) - 9 * number, 0, 255).astype(np.uint8)
        store, own = write_tiff(root / f"{slide}.tif", picture), root / "slides" / slide
        outputs = convert.Outputs(own / "pyramid.ome.zarr", own / "pyramid.json")
        convert.run(slide, convert.Inputs(store), outputs, ConvertRun(chunk_px=256, shard_px=512))
        made = tissue.Outputs(own / "tissue.ome.zarr", own / "tissue.json", own / "t.png")
        tissue.run(slide, tissue.Inputs(own / "pyramid.ome.zarr"), made, TissueRun())
    weights, facts = model / "weights.safetensors", model / "model.json"
    outputs = predict.Outputs(root / "predictions", root / "predictions.json")
    predict.run(SLIDES, predict.Inputs(root / "slides", weights, facts), outputs, PredictRun(stride_um=STRIDE_UM))
    for slide in SLIDES:
        inputs = heatmap.Inputs(slides=root / "slides", weights=weights, model=facts, predictions=root / "predictions")
        heatmap.run(slide, inputs, heatmap.Outputs(root / "heatmaps"), HeatmapRun(stride_um=STRIDE_UM))
    return root


def odds_of(root: Path, slide: str) -> np.ndarray:
    return read_log_odds(root / "heatmaps" / f"{slide}.ome.zarr", 0.5).data.astype(np.float64)


def test_heatmaps_keep_the_differences_of_logits(predicted: Path, model: Path) -> None:
    for slide in SLIDES:
        odds, pyramid = odds_of(predicted, slide), Pyramid(predicted / "slides" / slide / "pyramid.ome.zarr")
        spec = pyramid.patch_spec(75, 1.0)
        grid = pyramid.grid(spec, STRIDE_UM)
        known = np.isfinite(odds)
        places = np.argwhere(known)[::7]
        patches = [pyramid.read_patch(int(grid.x()[column]), int(grid.y()[row]), spec) for row, column in places]
        logits = predicting.logits_of(model, np.stack(patches))
        assert odds[tuple(places.T)] == pytest.approx(logits[:, 1] - logits[:, 0], rel=1e-3)
        assert len(np.unique(odds[known])) == known.sum() > 40
        shown = read_image(predicted / "heatmaps" / f"{slide}.ome.zarr", 0.5).data
        assert np.unique(shown[known]).tolist() == [1]
        np.testing.assert_array_equal(np.isfinite(shown), known)


@pytest.fixture(scope="module")
def truths(predicted: Path) -> dict[str, np.ndarray]:
    """Truth of each position: by the order of their maxima every other slide is normal, and tumour scores higher."""
    rng = np.random.default_rng(0)
    found = {}
    for number, slide in enumerate(sorted(SLIDES, key=lambda slide: np.nanmax(odds_of(predicted, slide)))):
        odds = odds_of(predicted, slide)
        blurred = odds + rng.normal(0, np.nanstd(odds), odds.shape)
        found[slide] = (number % 2 == 1) & (blurred > np.nanquantile(blurred, 0.6))
    return found


@pytest.fixture(scope="module")
def evaluated(predicted: Path, truths: dict[str, np.ndarray]) -> Callable[..., dict[str, Any]]:
    """The metrics with options of the stage evaluate, at an operating point chosen on the same slides."""
    root = predicted
    sheet = Sheet({s: SlideRow(s, "", "test", label="tumor" if truths[s].any() else "normal") for s in SLIDES})
    chosen_on = Sheet({s: SlideRow(s, "", "validation", label=sheet[s].label) for s in SLIDES})
    for slide in SLIDES:
        pyramid = Pyramid(root / "slides" / slide / "pyramid.ome.zarr")
        image = np.zeros((pyramid.size.height // 16 + 1, pyramid.size.width // 16 + 1), np.uint8)
        grid = pyramid.grid(pyramid.patch_spec(75, 1.0), STRIDE_UM)
        rows, columns = np.nonzero(truths[slide])
        image[(grid.y()[rows] + 75) // 16, (grid.x()[columns] + 75) // 16] = TUMOR
        at = root / f"{slide}.truth.ome.zarr"
        write_image(at, Image.from_corner(image, TRUTH_MPP), name="t", slide_mpp=0.5)
        write_truth_receipt(root / f"{slide}.truth.json", slide, float(truths[slide].sum()))
        heat = {"heatmap": root / "heatmaps" / f"{slide}.ome.zarr"}
        heat["heatmap_receipt"] = root / "heatmaps" / f"{slide}.json"
        counted = scores.Outputs(root / "scores" / f"{slide}.parquet", root / "scores" / f"{slide}.json")
        judged = scores.Inputs(truth=at, truth_receipt=root / f"{slide}.truth.json", **heat)
        scores.run(slide, judged, counted, ScoresRun(min_tissue=0))
        found = detect.Outputs(*(root / "detections" / f"{slide}.{kind}" for kind in ("csv", "geojson", "json")))
        searched = detect.Inputs(truth=at, truth_receipt=root / f"{slide}.truth.json", **heat)
        detect.run(slide, searched, found, DetectRun(radius_um=RADIUS_UM))
    calibration = root / "calibration.json"
    options = CalibrateRun.model_validate({"operating_point": {"rule": "youden"}})
    folders = calibrate.Inputs(root / "scores", root / "detections")
    calibrate.run(chosen_on, folders, calibrate.Outputs(calibration), options)
    for slide in SLIDES:
        compared = confusion.Inputs(
            pyramid=root / "slides" / slide / "pyramid.ome.zarr",
            truth=root / f"{slide}.truth.ome.zarr",
            truth_receipt=root / f"{slide}.truth.json",
            heatmap=root / "heatmaps" / f"{slide}.ome.zarr",
            heatmap_receipt=root / "heatmaps" / f"{slide}.json",
            calibration=calibration,
        )
        names = (f"{slide}.ome.zarr", f"{slide}.json", f"{slide}.png", f"{slide}.geojson")
        store, receipt, picture, geojson = (root / "confusion" / name for name in names)
        written = confusion.Outputs(store=store, receipt=receipt, picture=picture, geojson=geojson)
        confusion.run(slide, compared, written, ConfusionRun(min_tissue=0))

    def run(**options: Any) -> dict[str, Any]:
        inputs = evaluate.Inputs(
            scores=root / "scores",
            confusion=root / "confusion",
            detections=root / "detections",
            calibration=calibration,
        )
        evaluate.run(sheet, inputs, evaluate.Outputs(root / "out"), EvaluateRun(**options))
        metrics: dict[str, Any] = json.loads((root / "out" / "metrics.json").read_text())
        return metrics

    return run


def pooled(root: Path, truths: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    odds = {slide: odds_of(root, slide) for slide in SLIDES}
    return (
        np.concatenate([odds[slide][np.isfinite(odds[slide])] for slide in SLIDES]),
        np.concatenate([truths[slide][np.isfinite(odds[slide])] for slide in SLIDES]),
    )


def test_patch_figures_match_scikit_learn_on_log_odds(
    predicted: Path, truths: dict[str, np.ndarray], evaluated: Callable[..., dict[str, Any]]
) -> None:
    metrics = evaluated()
    odds, truth = pooled(predicted, truths)
    # Scores in one step tie: each pair counts a half instead of 0 or 1.
    normal, tumor = (np.bincount(quantize(odds[part]), minlength=2**16) for part in (~truth, truth))
    tied = (normal * tumor).sum() / 2 / ((~truth).sum() * truth.sum())
    assert tied < 0.001
    wanted = roc_auc_score(truth, odds)
    assert wanted > 0.6
    assert metrics["patch"]["auc"] == pytest.approx(wanted, abs=tied + 1e-12)
    point = metrics["operating_point"]
    called = odds >= point["threshold_log_odds"]
    counts = {"tp": called & truth, "fp": called & ~truth, "fn": ~called & truth, "tn": ~called & ~truth}
    assert metrics["confusion"]["counts"] == {name: int(which.sum()) for name, which in counts.items()}
    best = max((odds[truth] >= t).mean() - (odds[~truth] >= t).mean() for t in odds)
    assert point["threshold"] == 1
    assert 37 < point["threshold_log_odds"] < odds.max()
    assert called[truth].mean() - called[~truth].mean() == pytest.approx(best, abs=0.01)
    assert 0 < metrics["confusion"]["sensitivity"] < 1


@pytest.mark.parametrize("score", ["maximum", "top_share"])
def test_slide_scores_match_scikit_learn_on_log_odds(
    predicted: Path, truths: dict[str, np.ndarray], evaluated: Callable[..., dict[str, Any]], score: str
) -> None:
    metrics = evaluated(slide_level=SlideLevelOptions(score=score, top_share=0.05))
    wanted = {}
    for slide in SLIDES:
        odds = odds_of(predicted, slide)
        own = np.sort(odds[np.isfinite(odds)])[::-1]
        top = own[: int(np.ceil(0.05 * len(own)))]
        # 1 - p is exp(-log odds) to all digits.
        wanted[slide] = own[0] if score == "maximum" else -(logsumexp(-top) - np.log(len(top)))
    rows = [line.split(",") for line in (predicted / "out" / "slides.csv").read_text().splitlines()]
    found = {row[0]: float(row[rows[0].index("score")]) for row in rows[1:]}
    # A maximum is exact to a float32, a mean to a step, 1/29 wide at 200.
    assert found == pytest.approx(wanted, rel=0, abs=1e-4 if score == "maximum" else 0.1)
    labels = [truths[slide].any() for slide in SLIDES]
    assert metrics["slide"]["auc"] == roc_auc_score(labels, list(wanted.values()))
    if score == "maximum":
        # Normal, tumour, normal, tumour by their maxima; equal scores would give 0.5.
        assert metrics["slide"]["auc"] == 0.75


def test_detections_are_ordered_by_log_odds(predicted: Path, evaluated: Callable[..., dict[str, Any]]) -> None:
    evaluated()
    for slide in SLIDES:
        odds = odds_of(predicted, slide)
        remaining = np.where(np.isfinite(odds), odds, -np.inf)
        rows, columns = np.indices(odds.shape)
        wanted = []
        while np.isfinite(remaining).any():
            row, column = np.unravel_index(remaining.argmax(), odds.shape)
            wanted.append((column, row))
            away = np.hypot(rows - row, columns - column) * STRIDE_UM
            remaining[away <= RADIUS_UM] = -np.inf
        lines = (predicted / "detections" / f"{slide}.csv").read_text().splitlines()
        found = [tuple(map(float, line.split(","))) for line in lines]
        assert {confidence for confidence, _, _ in found} == {1}
        assert [(x, y) for _, x, y in found] == [(column * 100 + 75.0, row * 100 + 75.0) for column, row in wanted]
        receipt = read_receipt(predicted / "detections" / f"{slide}.json", DetectReceipt)
        assert receipt.lesions is not None
        assert receipt.false_positives is not None
        exact = {odds[row, column] for column, row in wanted}
        assert exact >= {*receipt.false_positives} | {c for c in receipt.lesions if c}


def test_tissue_is_stored_with_the_heatmap(predicted: Path) -> None:
    share = read_tissue(predicted / "heatmaps" / "a.ome.zarr", 0.5)
    assert (share[np.isfinite(odds_of(predicted, "a"))] > 0).all()
    assert share.max() == 1
    assert (share[np.isnan(odds_of(predicted, "a"))] == 0).all()


def test_orientations_average_probabilities_without_rounding(predicted: Path, model: Path) -> None:
    pyramid = Pyramid(predicted / "slides" / "a" / "pyramid.ome.zarr")
    pixels = np.stack([pyramid.read_patch(x, 300, pyramid.patch_spec(75, 1.0)) for x in (220, 300, 400)])
    options = HeatmapRun(orientations=True)
    found = TrainedModel(model / "weights.safetensors", model / "model.json", options).predictor(
        torch.from_numpy(pixels)
    )
    turned = [orient(torch.from_numpy(pixels).permute(0, 3, 1, 2), kind) for kind in range(ORIENTATIONS)]
    logits = [predicting.logits_of(model, one.permute(0, 2, 3, 1).numpy()) for one in turned]
    each = np.array([one[:, 1] - one[:, 0] for one in logits])
    assert each.min() > 37
    # 1 - p is exp(-log odds) to all digits.
    assert found.numpy() == pytest.approx(np.log(ORIENTATIONS) - logsumexp(-each, axis=0), rel=1e-3)


def test_log_odds_of_several_classes() -> None:
    logits = np.array([[3.0, -1, 2], [500, 600, 40], [0, 0, 900]])
    for positive in range(3):
        others = np.delete(logits, positive, axis=1)
        wanted = logits[:, positive] - logsumexp(others, axis=1)
        assert log_odds(torch.from_numpy(logits), positive).numpy() == pytest.approx(wanted)
        # As the definition, where nothing rounds.
        p = np.exp(logits[0, positive]) / np.exp(logits[0]).sum()
        assert wanted[0] == pytest.approx(np.log(p / (1 - p)))
