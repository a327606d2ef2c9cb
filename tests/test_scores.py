"""Score counts and features of a heatmap."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.special import logit
from skimage import measure
from sklearn.metrics import roc_auc_score

from helpers.evaluated import SHEET, SLIDES, log_odds, maps, run, scores_inputs, write_log_odds, write_slide
from helpers.receipts import write_truth_receipt
from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import ScoresRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
from wsi_pipeline.evaluation.slide_features import slide_features
from wsi_pipeline.evaluation.summary import summary_text
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.metrics.steps import quantize
from wsi_pipeline.pyramid.ome_zarr import Image
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import PositionCounts, ScoresReceipt, SlideTruth
from wsi_pipeline.stages import scores

PROBABILITIES = np.array([0.01, 0.3, 0.6, 0.9])


def receipt_of(histogram: ScoreHistogram) -> ScoresReceipt:
    return ScoresReceipt(
        slide="s",
        model_sha256="",
        counts_sha256=histogram.digest,
        labels_sha256="",
        positions=PositionCounts(normal=0, tumor=0, ignored=0),
        unread_positions=0,
        truth=SlideTruth(tumor=False, ignored=False),
        features=None,
        options=ScoresRun(),
    )


def test_counts_are_exact_and_survive_a_round_trip(tmp_path: Path) -> None:
    heat, truth = maps("t1")
    heat[0, :3] = heat[0, 3]  # ties
    truth[4] = IGNORE
    heat = log_odds(heat)
    counts = ScoreHistogram.of(heat, truth)
    counts.write(tmp_path / "c.parquet")
    found = ScoreHistogram.read(tmp_path / "c.parquet", receipt_of(counts))
    known = np.isfinite(heat)
    for name, value in (("normal", NORMAL), ("tumor", TUMOR), ("ignored", IGNORE)):
        spread = np.repeat(found.steps, getattr(found, name))
        assert spread.tolist() == sorted(quantize(heat[known & (truth == value)]).tolist())
    scored = known & (truth != IGNORE)
    # Lower edges of steps: each is the highest that is not above its score.
    values = found.histogram.values
    assert (values <= np.sort(heat[scored])[np.r_[True, np.diff(np.sort(quantize(heat[scored]))) > 0]]).all()
    assert len(values) == len(np.unique(quantize(heat[scored])))


def test_the_sum_of_histograms_has_all_positions() -> None:
    parts = [ScoreHistogram.of(np.rint(log_odds(heat)), truth) for heat, truth in map(maps, SLIDES)]
    heats, truths = (np.concatenate([maps(slide)[k] for slide in SLIDES]) for k in (0, 1))
    whole = ScoreHistogram.of(np.rint(log_odds(heats)), truths)
    assert ScoreHistogram.sum_of(parts).digest == whole.digest


def test_the_top_mean_averages_the_highest_scores() -> None:
    counts = ScoreHistogram(
        quantize(logit(PROBABILITIES)),
        normal=np.array([90, 3, 1, 0]),
        tumor=np.array([0, 2, 1, 1]),
        ignored=np.array([0, 0, 1, 1]),
    )
    # 100 positions: the highest twice, the second three times, the third five times.
    lowest, third, second, highest = PROBABILITIES
    found = {share: counts.top_mean(share) for share in (0.01, 0.04, 0.021, 1.0)}
    wanted = {
        0.01: highest,
        0.04: (2 * highest + 2 * second) / 4,
        # A fraction of a position is rounded up.
        0.021: (2 * highest + second) / 3,
        1.0: (2 * highest + 3 * second + 5 * third + 90 * lowest) / 100,
    }
    # A step is 1/750 wide at 0.
    assert found == pytest.approx({share: logit(mean) for share, mean in wanted.items()}, abs=1 / 750)
    empty = np.zeros(0, np.int64)
    assert ScoreHistogram(empty, empty, empty, empty).top_mean(0.5) is None


def test_features_of_a_map_by_hand() -> None:
    heat = np.full((10, 20), 0.1, np.float32)
    heat[1:3, 2:12] = 0.6  # 20 positions in a bar of 10 by 2
    heat[2, 2:4] = 0.95
    heat[8, 15] = 0.7
    heat[9] = np.nan
    # 180 positions of 100 um are predicted, 0.01 mm² each.
    found = slide_features(Image(log_odds(heat), 100.0, 50.0))
    assert found is not None
    assert found["maximum"] == pytest.approx(logit(0.95))
    assert found["mean"] == pytest.approx(logit((159 * 0.1 + 18 * 0.6 + 2 * 0.95 + 0.7) / 180))
    known = np.isfinite(heat)
    assert found["standard_deviation"] == pytest.approx(heat[known].std(), rel=1e-6)
    assert found["percentile_99"] == pytest.approx(np.quantile(logit(heat[known]), 0.99), rel=1e-6)
    assert found["areas_at_0.5"] == 2
    assert found["share_at_0.5"] == pytest.approx(21 / 180)
    assert found["largest_mm2_at_0.5"] == pytest.approx(0.2)
    assert found["second_mm2_at_0.5"] == pytest.approx(0.01)
    assert found["largest_extent_at_0.5"] == 1
    assert found["largest_mean_at_0.5"] == pytest.approx(logit((18 * 0.6 + 2 * 0.95) / 20))
    # The ellipse with the moments of a bar of 10 pixels: 4 sqrt(10² / 12) = 11.5 pixels.
    assert found["largest_axis_um_at_0.5"] == pytest.approx(100 * 4 * np.sqrt(100 / 12), rel=0.01)
    assert found["share_at_0.9"] == pytest.approx(2 / 180)
    assert found["second_mm2_at_0.9"] == 0


@given(arrays(np.bool_, (6, 7)).filter(np.any))
@settings(max_examples=50, deadline=None)
def test_areas_match_scikit_image_with_8_connectivity(called: np.ndarray) -> None:
    found = slide_features(Image(np.where(called, 0.0, -0.5).astype(np.float32), 100.0, 50.0))
    assert found is not None
    sizes = sorted(np.bincount(measure.label(called, connectivity=2).ravel())[1:].tolist())
    assert found["areas_at_0.5"] == len(sizes)
    assert found["largest_mm2_at_0.5"] == pytest.approx(sizes[-1] * 0.01)
    assert found["second_mm2_at_0.5"] == pytest.approx(sizes[-2] * 0.01 if len(sizes) > 1 else 0)


def test_a_map_without_tumour_or_without_tissue() -> None:
    low = slide_features(Image(np.full((4, 4), -0.2, np.float32), 100.0, 50.0))
    assert low is not None
    assert {value for name, value in low.items() if "_at_" in name} == {0}
    assert slide_features(Image(np.full((4, 4), np.nan, np.float32), 100.0, 50.0)) is None


def test_a_heatmap_of_another_slide_is_refused(tissue_slide: Path, tmp_path: Path) -> None:
    write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "a", *maps("n1"))
    inputs, outputs = scores_inputs(tmp_path, "a"), scores.Outputs(tmp_path / "b.parquet", tmp_path / "b.json")
    with pytest.raises(StoreError, match="the heatmap of a, not of b"):
        scores.run("b", inputs, outputs, ScoresRun())
    assert not outputs.histogram.exists()
    receipt = read_receipt(tmp_path / "scores" / "a.json", ScoresReceipt)
    assert receipt.positions == PositionCounts(normal=40, tumor=0, ignored=0)
    assert receipt.truth == SlideTruth(tumor=False, ignored=False)
    # Annotated tumour smaller than a pixel of the truth image.
    write_truth_receipt(inputs.truth_receipt, "a", 0.00003)
    scores.run("a", inputs, outputs, ScoresRun())
    assert read_receipt(outputs.receipt, ScoresReceipt).truth.tumor


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_text("no table")
    with pytest.raises(StoreError, match=r"c\.parquet: not a table of scores .*Run the stage scores again"):
        ScoreHistogram.read(tmp_path / "c.parquet", receipt_of(ScoreHistogram(*np.zeros((4, 0), np.int64))))


@pytest.mark.parametrize("column", ["normal", "tumor", "ignored", "steps"])
def test_a_table_of_another_map_is_refused(tmp_path: Path, column: str) -> None:
    columns = {name: np.array([1, 2]) for name in ("steps", "normal", "tumor", "ignored")}
    mine, other = ScoreHistogram(**columns), ScoreHistogram(**columns | {column: np.array([1, 3])})
    other.write(tmp_path / "c.parquet")
    assert ScoreHistogram.read(tmp_path / "c.parquet", receipt_of(other)).digest == other.digest
    with pytest.raises(StoreError, match=r"c\.parquet: .*its receipt is of another one.*Run the stage scores again"):
        ScoreHistogram.read(tmp_path / "c.parquet", receipt_of(mine))


def test_counts_that_do_not_match_their_receipt_are_not_evaluated(scored: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(scored, root, symlinks=True)
    shutil.copy(root / "scores" / "n1.parquet", root / "scores" / "t1.parquet")
    with pytest.raises(StoreError, match=r"t1\.parquet: .*its receipt is of another one"):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unread_positions_are_reported(tissue_slide: Path, tmp_path: Path) -> None:
    for slide, unread in (("n1", 0), ("t1", 3)):
        write_slide(tmp_path / "a", tissue_slide / "pyramid.ome.zarr", slide, *maps(slide), unread=unread)
    metrics = run(tmp_path / "a", tmp_path / "b", Sheet({slide: SHEET[slide] for slide in ("n1", "t1")}))
    assert metrics["cohort"]["unread_positions"] == {"t1": 3}
    message = "positions on damaged chunks, which no figure counts: t1 (3)"
    assert message in summary_text(tmp_path / "b" / "metrics.json", Path("r.html"))


@pytest.mark.parametrize(("beyond", "warned"), [(1000.0, True), (900.0, False)])
def test_scores_that_tie_because_they_are_extreme_are_reported(
    tissue_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, beyond: float, warned: bool
) -> None:
    heat, truth = maps("t1")
    write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "t1", heat, truth)
    odds = log_odds(heat)
    odds[0, 7], odds[0, 6] = beyond, -beyond
    write_log_odds(tmp_path, "t1", odds, np.ones(odds.shape))
    inputs, outputs = scores_inputs(tmp_path, "t1"), scores.Outputs(tmp_path / "c.parquet", tmp_path / "c.json")
    scores.run("t1", inputs, outputs, ScoresRun())
    assert ("t1: the log odds of 2 patches lie beyond ±945" in caplog.text) == warned


@pytest.mark.parametrize(("spread", "warned"), [(1e-4, True), (1.0, False)])
def test_scores_that_tie_because_they_are_close_together_are_reported(
    tissue_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, spread: float, warned: bool
) -> None:
    heat, truth = maps("t1")
    write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "t1", heat, truth)
    odds = -3 + spread * np.random.default_rng(0).uniform(size=heat.shape)
    write_log_odds(tmp_path, "t1", np.where(np.isfinite(heat), odds, np.nan), np.ones(odds.shape))
    inputs, outputs = scores_inputs(tmp_path, "t1"), scores.Outputs(tmp_path / "c.parquet", tmp_path / "c.json")
    scores.run("t1", inputs, outputs, ScoresRun())
    assert ("different log odds tie in 1 steps" in caplog.text) == warned


def test_patches_with_too_little_tissue_are_not_scored(tissue_slide: Path, tmp_path: Path) -> None:
    """Glass is normal and easy: it would raise the AUC. Slide score and detections use it nevertheless."""
    heat, truth = maps("t1")
    tissue = np.full(heat.shape, 0.75)
    tissue[4], heat[4] = 0.74, 0.01
    tissue[0, 7], heat[0, 7] = 0, 0.9999
    write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "t1", heat, truth, tissue=tissue)
    metrics = run(tmp_path, tmp_path / "out", Sheet({"t1": SHEET["t1"]}))
    scored, glass = np.isfinite(heat) & (tissue >= 0.75), np.isfinite(heat) & (tissue == 0.74)
    wanted = roc_auc_score(truth[scored] == TUMOR, heat[scored])
    assert metrics["patch"]["auc"] == pytest.approx(wanted, abs=1e-12)
    assert wanted < roc_auc_score(truth[scored | glass] == TUMOR, heat[scored | glass])
    assert (metrics["patch"]["n_tumor"], metrics["patch"]["n_normal"]) == (12, 19)
    assert sum(metrics["confusion"]["counts"].values()) == 31
    assert metrics["patch"]["label_rule"]["min_tissue"] == 0.75
    receipt = read_receipt(tmp_path / "scores" / "t1.json", ScoresReceipt)
    assert receipt.positions.ignored == 9
    assert receipt.features is not None
    assert receipt.features["maximum"] == log_odds(np.array(0.9999))
    first = (tmp_path / "detections" / "t1.csv").read_text().splitlines()[0]
    assert float(first.split(",")[0]) == pytest.approx(0.9999)


def test_the_digest_of_the_labels_is_that_of_scored_positions_and_their_truth(
    tissue_slide: Path, tmp_path: Path
) -> None:
    heat, truth = maps("t1")

    def digest(heat: np.ndarray, truth: np.ndarray) -> str:
        write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "x", heat, truth, test=False)
        receipt = read_receipt(tmp_path / "scores" / "x.json", ScoresReceipt)
        return receipt.labels_sha256

    first = digest(heat, truth)
    # Other scores, and other truth where nothing is predicted.
    elsewhere = truth.copy()
    elsewhere[5] = TUMOR
    assert digest(np.clip(heat / 2, 0.01, None), elsewhere) == first
    moved = truth.copy()
    moved[0, 0], moved[1, 1] = moved[1, 1], moved[0, 0]
    unread = heat.copy()
    unread[0, 0] = np.nan
    others = [digest(heat, moved), digest(unread, truth), digest(heat[:, :7], truth[:, :7])]
    # The same labels one after another, on another grid.
    others.append(digest(heat.reshape(8, 6), truth.reshape(8, 6)))
    assert len({first, *others}) == 5
