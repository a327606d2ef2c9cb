from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit
from sklearn import metrics as sk

from helpers.evaluated import KINDS, SHEET, SLIDES, counted, log_odds, maps, pooled, run, write_slide
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import SlideLevelOptions
from wsi_pipeline.errors import ConfigError, IncompleteError, StoreError
from wsi_pipeline.evaluation import slide_results
from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
from wsi_pipeline.evaluation.summary import format_figure
from wsi_pipeline.masks.label_images import IGNORE, TUMOR
from wsi_pipeline.receipts.evaluation import ScoresReceipt


def test_patch_metrics_match_scikit_learn_on_pooled_patches(scored: Path, tmp_path: Path) -> None:
    metrics = run(scored, tmp_path)
    scores, truth = pooled()
    patch = metrics["patch"]
    assert patch["auc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)
    assert patch["average_precision"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-12)
    assert (patch["n_normal"], patch["n_tumor"]) == ((~truth).sum(), truth.sum())
    low, high = patch["auc_interval"]
    assert low < patch["auc"] < high
    called = scores >= 0.8
    counts = {"tp": called & truth, "fp": called & ~truth, "fn": ~called & truth, "tn": ~called & ~truth}
    assert metrics["confusion"]["counts"] == {name: int(which.sum()) for name, which in counts.items()}
    assert sum(metrics["confusion"]["share_of_total"].values()) == pytest.approx(1)
    recall = sk.recall_score(truth, called)
    assert metrics["confusion"]["sensitivity"] == pytest.approx(recall)
    fixed = {"rule": "fixed", "threshold": 0.8, "threshold_log_odds": logit(0.8), "chosen_on": "given in the config"}
    assert metrics["operating_point"] == fixed
    for level in ("patch", "calibration", "confusion", "slide", "lesion"):
        assert (metrics[level]["left_out"], metrics[level]["slide_set"]) == ([], "all"), level


def test_slide_scores_are_the_maxima(scored: Path, tmp_path: Path) -> None:
    metrics = run(scored, tmp_path)
    best = {s: np.nanmax(maps(s)[0]) for s in SLIDES}
    wanted = sk.roc_auc_score([s[0] == "t" for s in SLIDES], list(best.values()))
    assert metrics["slide"]["auc"] == wanted
    rows = {r["slide"]: r for r in csv.DictReader((tmp_path / "slides.csv").read_text().splitlines())}
    assert {s: np.float32(r["score"]) for s, r in rows.items()} == {s: log_odds(p) for s, p in best.items()}
    assert rows["t1"]["lesions"] == "1"


@pytest.mark.parametrize("patients", [6, 5])
def test_several_slides_of_a_patient_are_reported(
    scored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, patients: int
) -> None:
    own = {slide: f"p{k % patients}" for k, slide in enumerate(SLIDES)}
    metrics = run(scored, tmp_path, Sheet({s: replace(row, patient=own[s]) for s, row in SHEET.items()}))
    assert metrics["cohort"]["test_patients"] == patients
    assert ("6 test slides of 5 patients: intervals take slides as independent" in caplog.text) == (patients == 5)


@pytest.mark.parametrize("order", [1, -1])
def test_bins_follow_slides_of_both_kinds_in_any_order(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    read: list[str] = []
    original = ScoreHistogram.read

    def recorded(path: Path, receipt: ScoresReceipt) -> ScoreHistogram:
        read.append(path.stem)
        return original(path, receipt)

    monkeypatch.setattr(slide_results, "_SAMPLE_SLIDES", 2)
    monkeypatch.setattr(ScoreHistogram, "read", recorded)
    run(scored, tmp_path, Sheet({slide: SHEET[slide] for slide in [*SHEET][::order]}))
    assert read == ["n1", "n3", "t1", "t3", *sorted(SHEET)]


def test_slide_scores_may_be_the_mean_of_the_top_share(scored: Path, tmp_path: Path) -> None:
    metrics = run(scored, tmp_path, slide_level=SlideLevelOptions(score="top_share", top_share=0.2))
    wanted = {}
    for slide in SLIDES:
        heat = maps(slide)[0]
        own = np.sort(heat[np.isfinite(heat)])[::-1]
        wanted[slide] = logit(own[: int(np.ceil(0.2 * len(own)))].mean())
    rows = {r["slide"]: r for r in csv.DictReader((tmp_path / "slides.csv").read_text().splitlines())}
    # The mean is taken from the steps of the histogram, which are 1/750 wide.
    assert {s: float(r["score"]) for s, r in rows.items()} == pytest.approx(wanted, abs=1 / 750)
    assert metrics["slide"]["score"] == "log odds of the mean probability of the highest 20 % of the heatmap"


@pytest.mark.slow
def test_the_forest_is_not_fitted_on_test_slides(tissue_slide: Path, tmp_path: Path) -> None:
    # Tumour slides have one large area, normal ones as many scattered high scores: the maximum does not separate them.
    rng = np.random.default_rng(5)
    sheet = Sheet()
    for number in range(16):
        slide, tumor = f"s{number}", number % 2 == 1
        heat, truth = rng.uniform(0, 0.3, (6, 8)), np.zeros((6, 8), np.uint8)
        called = (slice(1, 4), slice(1, 4)) if tumor else (slice(0, 6, 2), slice(0, 6, 2))
        heat[called] = rng.uniform(0.9, 1, (3, 3))
        truth[called] = tumor
        split = "test" if number < 4 else "validation" if number < 8 else "train"
        write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", slide, heat, truth, test=split == "test")
        sheet[slide] = SlideRow(slide, "", split, label="tumor" if tumor else "normal")
    forest = SlideLevelOptions(score="forest", trees=50)
    metrics = run(tmp_path, tmp_path / "a", sheet, slide_level=forest)["slide"]
    assert metrics["auc"] == 1
    assert (metrics["n_normal"], metrics["n_tumor"]) == (2, 2)
    assert (metrics["fitted_on_normal"], metrics["fitted_on_tumor"]) == (6, 6)
    assert metrics["score"].startswith("random forest of 50 trees over")
    assert sum(metrics["importance"].values()) == pytest.approx(1)
    run(tmp_path, tmp_path / "b", sheet, slide_level=forest)
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()
    # The forest must not learn from the labels of test slides: swapped labels keep its scores and turn the AUC to 0.
    turned = {"normal": "tumor", "tumor": "normal"}
    for slide in sheet.of_split("test"):
        receipt = tmp_path / "scores" / f"{slide}.json"
        facts = json.loads(receipt.read_text())
        facts["truth"] = {"tumor": sheet[slide].label == "normal", "ignored": False}
        receipt.write_text(json.dumps(facts))
        sheet[slide] = replace(sheet[slide], label=turned[sheet[slide].label])
    assert run(tmp_path, tmp_path / "c", sheet, slide_level=forest)["slide"]["auc"] == 0
    normals = Sheet({s: row for s, row in sheet.items() if row.split == "test" or row.label == "normal"})
    with pytest.raises(ConfigError, match=r"needs normal and tumour slides .* there are 6 and 0"):
        run(tmp_path, tmp_path / "d", normals, slide_level=forest)


@pytest.mark.parametrize(("slide", "label", "has"), [("n1", "tumor", "has no tumour"), ("t1", "normal", "has tumour")])
def test_a_label_that_contradicts_the_truth_is_refused(
    scored: Path, tmp_path: Path, slide: str, label: str, has: str
) -> None:
    sheet = Sheet({**SHEET, slide: replace(SHEET[slide], label=label)})
    with pytest.raises(StoreError, match=f"slide {slide}: the sheet's label is {label}, but its truth {has}"):
        run(scored, tmp_path, sheet)
    assert not (tmp_path / "metrics.json").exists()


def test_each_metric_lists_the_slides_that_it_leaves_out(scored: Path, tmp_path: Path) -> None:
    """`x` is excluded by the config, `n2` has no label, and the lesions of `t2` are not all annotated."""
    for name in ("scores", "confusion", "detections"):
        shutil.copytree(scored / name, tmp_path / name)
    shutil.copy(scored / "calibration.json", tmp_path)
    receipt = tmp_path / "detections" / "t2.json"
    unknown = {"lesions": None, "false_positives": None, "isolated": None, "ignored": None, "reason": "not annotated"}
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), **unknown}))
    sheet = Sheet({**SHEET, "n2": replace(SHEET["n2"], label=None, excluded_from=("labelled",))})
    sheet.excluded["x"] = SlideRow("x", "x.tif", "test", label="tumor", excluded_from=("labelled", "paper"))
    sheet.excluded["y"] = SlideRow("y", "y.tif", "validation", label="tumor", excluded_from=("labelled", "paper"))
    metrics = run(tmp_path, tmp_path / "out", sheet)
    for level in ("patch", "calibration", "confusion"):
        assert (metrics[level]["left_out"], metrics[level]["slide_set"]) == (["x"], "paper"), level
        assert "not_scored" not in metrics[level]
    assert metrics["slide"]["not_scored"] == {"n2": "no label"}
    assert (metrics["slide"]["left_out"], metrics["slide"]["slide_set"]) == (["n2", "x"], "labelled")
    assert (metrics["slide"]["n_normal"], metrics["slide"]["n_tumor"]) == (2, 3)
    assert metrics["lesion"]["not_scored"] == {"t2": "not annotated"}
    assert (metrics["lesion"]["left_out"], metrics["lesion"]["slide_set"]) == (["t2", "x"], None)
    assert (metrics["lesion"]["n_slides"], metrics["lesion"]["n_lesions"]) == (5, 2)


@pytest.mark.slow
def test_lesions_that_are_mostly_ignored_are_named(tissue_slide: Path, tmp_path: Path) -> None:
    """The tumour of `t1` is 4 x 3 pixels of 200 px: 4 of them ignored, then 8."""
    pyramid = tissue_slide / "pyramid.ome.zarr"
    for slide in SLIDES:
        write_slide(tmp_path, pyramid, slide, *maps(slide))
    heat, truth = maps("t1")
    for last, named, lesions in ((2, {}, 3), (3, {"t1": [[600, 500]]}, 2)):
        truth[1:last, 1:5] = TUMOR | IGNORE
        write_slide(tmp_path, pyramid, "t1", heat, truth)
        metrics = run(tmp_path, tmp_path / "out")["lesion"]
        assert (metrics["mostly_ignored"], metrics["n_lesions"]) == (named, lesions)
        # Ignored parts leave no slide out.
        assert (metrics["not_scored"], metrics["n_slides"]) == ({}, len(SLIDES))
        assert metrics["protocol"] == "slide_scale"


def test_lesions_measured_by_two_protocols_are_refused(scored: Path, tmp_path: Path) -> None:
    for name in ("scores", "confusion", "detections"):
        shutil.copytree(scored / name, tmp_path / name)
    shutil.copy(scored / "calibration.json", tmp_path)
    receipt = tmp_path / "detections" / "t2.json"
    facts = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**facts, "options": {**facts["options"], "protocol": "camelyon16"}}))
    with pytest.raises(StoreError, match="by the protocols camelyon16 and slide_scale"):
        run(tmp_path, tmp_path / "out")


def test_the_table_of_the_froc_has_all_thresholds(scored: Path, tmp_path: Path) -> None:
    metrics = run(scored, tmp_path)
    receipts = [json.loads((scored / "detections" / f"{slide}.json").read_text()) for slide in SLIDES]
    false = [c for one in receipts for c in one["false_positives"]]
    lesions = [c for one in receipts for c in one["lesions"]]
    rows = [
        [float(cell) for cell in row.values()]
        for row in csv.DictReader((tmp_path / "froc.csv").read_text().splitlines())
    ]
    assert len(rows) == len({*false, *(c for c in lesions if c is not None)}) + 1
    # The first row has the lowest threshold, which the challenge leaves out.
    assert rows[0][2:] == pytest.approx([len(false) / len(SLIDES), sum(c is not None for c in lesions) / len(lesions)])
    assert max(metrics["lesion"]["all_thresholds"]["sensitivity"]) == pytest.approx(rows[0][3])


@pytest.mark.slow
def test_a_slide_without_scored_positions_is_left_out_of_the_figures_of_patches(
    tissue_slide: Path, tmp_path: Path
) -> None:
    pyramid = tissue_slide / "pyramid.ome.zarr"
    for slide in SLIDES:
        heat, truth = maps(slide)
        write_slide(tmp_path, pyramid, slide, heat, np.full_like(truth, IGNORE) if slide == "n2" else truth)
    sheet = Sheet({**SHEET, "n2": replace(SHEET["n2"], label=None, excluded_from=("annotated",))})
    metrics = run(tmp_path, tmp_path / "out", sheet)
    for level in ("patch", "calibration", "confusion"):
        assert (metrics[level]["left_out"], metrics[level]["slide_set"]) == (["n2"], "annotated"), level
        assert metrics[level]["n_slides"] == 5, level
    assert metrics["confusion"]["f1_reason"] is None
    empty = run(tmp_path, tmp_path / "none", Sheet({"n2": sheet["n2"]}))
    assert (empty["confusion"]["f1"], empty["confusion"]["f1_reason"]) == (None, "it divides by 0 patches")


@pytest.mark.slow
@pytest.mark.usefixtures("rendered_figures")
def test_macro_average_centres_and_calibration(scored: Path, tmp_path: Path) -> None:
    names = list(SLIDES)
    sheet = Sheet({s: replace(row, centre="north" if s in names[:3] else "south") for s, row in SHEET.items()})
    found = run(scored, tmp_path, sheet)
    patch = found["patch"]
    own, parts = [], {"north": [], "south": []}
    for slide in names:
        heat, truth = maps(slide)
        known = np.isfinite(heat)
        values, is_tumor = counted(heat[known]), truth[known] == TUMOR
        parts[sheet[slide].centre].append((is_tumor, values))
        if 0 < is_tumor.sum() < len(is_tumor):
            own.append(sk.roc_auc_score(is_tumor, values))
    assert patch["macro"]["auc"] == pytest.approx(np.mean(own), abs=1e-12)
    assert patch["macro"]["n_slides"] == len(own)
    for centre, slides in parts.items():
        is_tumor, values = (np.concatenate([s[k] for s in slides]) for k in (0, 1))
        area = patch["by_centre"][centre]["auc"]
        assert patch["by_centre"][centre]["n_slides"] == len(slides)
        if is_tumor.any():
            assert area == pytest.approx(sk.roc_auc_score(is_tumor, values), abs=1e-12)
        else:
            assert area is None
    scores, truth = pooled()
    calibration = found["calibration"]
    assert calibration["brier_score"] == pytest.approx(np.mean((scores - truth) ** 2), abs=1e-6)
    assert calibration["n_patches"] == len(scores)
    low, high = calibration["expected_calibration_error_interval"]
    assert 0 <= low <= high <= 1
    rows = (tmp_path / "reliability.csv").read_text().splitlines()
    assert len(rows) == 16
    assert sum(int(row.split(",")[2]) for row in rows[1:]) == len(scores)
    assert (tmp_path / "reliability.png").stat().st_size > 3000


@pytest.mark.slow
@pytest.mark.usefixtures("rendered_figures")
def test_figures_are_reproducible_as_png_and_pdf(scored: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        run(scored, tmp_path / folder)
    names = [f"{name}.{kind}" for name in ("roc", "pr", "froc", "reliability", "confusion", "cohort") for kind in KINDS]
    for name in names:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two, name
        assert one.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[name[-3:]])
    # TrueType fonts are embedded, so text can be searched and edited.
    assert b"/FontFile2" in (tmp_path / "one" / "roc.pdf").read_bytes()


def test_the_roc_curve_lies_within_its_band(scored: Path, tmp_path: Path) -> None:
    run(scored, tmp_path)
    with (tmp_path / "roc_band.csv").open() as file:
        rate, low, high = np.array([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]).T
    assert np.array_equal(rate, np.linspace(0, 1, 201).round(6))
    assert (low <= high).all()
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) >= 0).all()
    assert high[-1] == low[-1] == 1
    scores, truth = pooled()
    fpr, tpr, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    inside = np.interp(rate, fpr, tpr)
    # The band comes from binned scores, so the exact curve may leave it by about the width of a bin.
    assert (low - 0.01 <= inside).all()
    assert (inside <= high + 0.01).all()
    assert (high - low).max() > 0.01


def test_figures_of_too_few_slides_of_a_class_have_no_interval(scored: Path, tmp_path: Path) -> None:
    enough = run(scored, tmp_path / "a")
    figures = (("patch", "auc"), ("patch", "average_precision"), ("slide", "auc"), ("lesion", "froc"))
    for level, name in (*figures, ("confusion", "sensitivity")):
        low, high = enough[level][f"{name}_interval"]
        assert 0 <= low <= enough[level][name] <= high <= 1
        assert low < high
        assert enough[level][f"{name}_interval_reason"] is None
    few = run(scored, tmp_path / "b", Sheet({slide: SHEET[slide] for slide in ("n1", "n2", "n3", "t1", "t2")}))
    for level, name in (*figures, ("confusion", "sensitivity")):
        assert few[level][name] is not None
        assert few[level][f"{name}_interval"] is None
        reason = "too few slides for an interval: 2, at least 3 are needed"
        assert few[level][f"{name}_interval_reason"] == reason
        assert format_figure(few[level], name).endswith(f" ({reason})")
    # All five slides have normal patches.
    assert few["confusion"]["specificity_interval"] is not None
    assert len((tmp_path / "a" / "roc_band.csv").read_text().splitlines()) == 202
    assert len((tmp_path / "b" / "roc_band.csv").read_text().splitlines()) == 1


def test_the_matlab_parity_auc_is_a_trapezoid_over_13_thresholds(scored: Path, tmp_path: Path) -> None:
    scores, truth = pooled()
    thresholds = [1, 0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0]
    tpr = [(scores[truth] >= t).mean() for t in thresholds]
    fpr = [(scores[~truth] >= t).mean() for t in thresholds]
    metrics = run(scored, tmp_path)
    assert metrics["matlab_parity"]["auc"] == pytest.approx(np.trapezoid(tpr, fpr), abs=1e-12)
    assert metrics["matlab_parity"]["thresholds"] == thresholds


def test_the_same_inputs_give_the_same_bytes(scored: Path, tmp_path: Path) -> None:
    run(scored, tmp_path / "a")
    run(scored, tmp_path / "b")
    for name in ("metrics.json", "roc.csv", "pr.csv", "froc.csv", "slides.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / "metrics.json").read_text()


def test_missing_slides_are_named_and_mark_the_metrics_incomplete(scored: Path, tmp_path: Path) -> None:
    more = Sheet({**SHEET, "gone": SlideRow("gone", "gone.tif", "test", label="tumor")})
    with pytest.raises(IncompleteError, match=r"1 of 7 test slides have no results: gone\. .*cohort\.exclude"):
        run(scored, tmp_path, more)
    assert json.loads((tmp_path / "metrics.json").read_text())["cohort"]["complete"] is False
    metrics = run(scored, tmp_path, more, allow_missing=True)
    assert metrics["cohort"]["missing"] == ["gone"]
    assert metrics["cohort"]["complete"] is False


def test_a_single_class_gives_null_with_the_reason(scored: Path, tmp_path: Path) -> None:
    normals = Sheet({s: row for s, row in SHEET.items() if row.label == "normal"})
    metrics = run(scored, tmp_path, normals)
    assert metrics["patch"]["auc"] is None
    assert metrics["patch"]["reason"] == "there are no tumour patches"
    assert metrics["slide"]["reason"] == "there are no tumour slides"
    assert metrics["lesion"]["froc"] is None
    assert metrics["matlab_parity"]["auc"] is None
    assert metrics["confusion"]["sensitivity"] is None


def test_no_slides_give_nulls(scored: Path, tmp_path: Path) -> None:
    metrics = run(scored, tmp_path, Sheet(), allow_missing=True)
    assert metrics["patch"]["reason"] == "there are no normal and no tumour patches"
    assert metrics["operating_point"] is None


def test_maps_of_two_models_are_refused(scored: Path, tissue_slide: Path, tmp_path: Path) -> None:
    write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "x", *maps("n1"), model="b" * 64)
    for kind in ("scores", "confusion", "detections"):
        for path in (scored / kind).glob("n1*"):
            if path.is_file():
                (tmp_path / kind / path.name).write_bytes(path.read_bytes())
    sheet = Sheet({s: SlideRow(s, "", "test", label="normal") for s in ("n1", "x")})
    with pytest.raises(StoreError, match="n1 was predicted by the model aaaaaaaaaaaa, x by bbbbbbbbbbbb"):
        run(tmp_path, tmp_path / "out", sheet)
