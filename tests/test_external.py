"""FROC and ROC of external predictions by the command line, compared with values calculated by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from wsi_pipeline.cli import app as cli
from wsi_pipeline.errors import PipelineError, PredictionError
from wsi_pipeline.evaluation.external import read_detections, read_mask
from wsi_pipeline.metrics.delong import auc_contributions, compare, structural_components


def command(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def figures_of(folder: Path, *arguments: object) -> dict[str, Any]:
    command(*arguments, "--json", folder / "out.json")
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def direct(tumor: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """1 where a tumour case has the higher score, one half for a tie; (tumour, normal)."""
    return (tumor[:, None] > normal[None]) + 0.5 * (tumor[:, None] == normal[None])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=4, max_size=60))
@settings(max_examples=200, deadline=None)
def test_delong_matches_the_computation_over_all_pairs(cases: list[tuple[int, int, bool]]) -> None:
    first, second, is_tumor = (np.array(values) for values in zip(*cases, strict=True))
    scores = np.stack((first, second)).astype(float)
    tumors = int(is_tumor.sum())
    if min(tumors, len(cases) - tumors) < 2:
        assert auc_contributions(scores, is_tumor) is None
        return
    psi = np.stack([direct(s[is_tumor], s[~is_tumor]) for s in scores])
    areas = psi.mean(axis=(1, 2))
    of_tumor, of_normal = structural_components(scores, is_tumor)
    np.testing.assert_allclose(of_tumor, psi.mean(axis=2), atol=1e-12)
    np.testing.assert_allclose(of_normal, psi.mean(axis=1), atol=1e-12)
    # Sums over cases of the products of deviations from the AUC (DeLong et al., equation 5).
    m, n = psi.shape[1:]
    wanted = np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            s10 = ((psi[r].mean(axis=1) - areas[r]) * (psi[s].mean(axis=1) - areas[s])).sum() / (m - 1)
            s01 = ((psi[r].mean(axis=0) - areas[r]) * (psi[s].mean(axis=0) - areas[s])).sum() / (n - 1)
            wanted[r, s] = s10 / m + s01 / n
    found = auc_contributions(scores, is_tumor)
    assert found is not None
    np.testing.assert_allclose(found @ found.T, wanted, atol=1e-12)
    compared = compare(*scores, is_tumor, level=0.95, permutations=100, seed=1)
    assert compared is not None
    error = np.sqrt(max(0.0, wanted[0, 0] + wanted[1, 1] - 2 * wanted[0, 1]))
    assert compared.standard_error == pytest.approx(error, abs=1e-7)
    assert areas[0] == pytest.approx(sk.roc_auc_score(is_tumor, first), abs=1e-12)


def test_p_values_of_different_and_of_equal_models() -> None:
    rng = np.random.default_rng(0)
    is_tumor = np.arange(120) % 3 == 0
    good = is_tumor + rng.normal(0, 0.5, 120)
    bad = is_tumor + rng.normal(0, 4, 120)
    found = compare(good, bad, is_tumor, level=0.95, permutations=2000, seed=1)
    assert found is not None
    assert found.difference > 0.2
    assert found.p_delong is not None
    assert found.p_delong < 1e-3
    assert found.p_permutation < 2e-3
    # Only the order of the scores matters, not their scale.
    same = compare(good, np.exp(good) * 7, is_tumor, level=0.95, permutations=500, seed=1)
    assert same is not None
    assert (same.difference, same.p_delong, same.p_permutation) == (0, 1, 1)
    assert same.difference_interval is None
    # For equally good models p-values are uniform: about one in ten is below 0.1.
    small = 0
    for _ in range(100):
        truth = np.arange(60) % 2 == 0
        scores = truth + rng.normal(0, 1, (2, 60))
        one = compare(*scores, truth, level=0.95, permutations=100, seed=1)
        assert one is not None
        small += one.p_permutation < 0.1
    assert 2 <= small <= 22


def write_case(root: Path, slide: str, rows: str, mask: np.ndarray | None = None, suffix: str = ".tif") -> None:
    for folder in ("detections", "masks"):
        (root / folder).mkdir(exist_ok=True)
    (root / "detections" / f"{slide}.csv").write_text(rows)
    if mask is None:
        return
    path = root / "masks" / f"{slide}{suffix}"
    if suffix.endswith(".png"):
        Image.fromarray(mask).save(path)
    else:
        tifffile.imwrite(path, mask)


def square_mask(*corners: tuple[int, int], edge: int = 50) -> np.ndarray:
    """Squares of 50 px, 389 um at level 5 of 0.243 um per pixel, well over 275 um."""
    mask = np.zeros((300, 400), np.uint8)
    for y, x in corners:
        mask[y : y + edge, x : x + edge] = 255
    return mask


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    # Level 5: a mask pixel is 32 level-0 pixels; (1000, 1000) is in pixel (31, 31).
    write_case(
        tmp_path,
        "test_001",
        "0.9,1000,1000\n0.8,1010,1010\n0.7,9000,9000\n0.3,8000,1000\n",
        square_mask((20, 20), (20, 240)),
    )
    write_case(
        tmp_path, "Test_002", "Confidence,X,Y\n0.6,50,50\n", square_mask((100, 100)), suffix="_evaluation_mask.png"
    )
    write_case(tmp_path, "test_003", "0.5,100,100\n0.4,200,200\n")
    write_case(tmp_path, "test_004", "")
    return tmp_path


def test_froc_by_hand(cases: Path) -> None:
    found = figures_of(cases, "froc", cases / "detections", cases / "masks")
    # 3 lesions, hit at 0.9 (twice, once counted), 0.3 and never; false positives 0.7, 0.6, 0.5, 0.4 on 4 slides.
    # Falling thresholds: 0.9: 1/3 at 0; 0.7: 1/3 at 1/4; 0.6: 1/3 at 1/2; 0.5: 1/3 at 3/4; 0.4: 1/3 at 1; 0.3: 2/3
    # at 1.
    # The missed lesion counts as 0, the lowest, which is left out. Sensitivity at 1/4 and 1/2 is 1/3, from 1 on 2/3.
    assert found["sensitivity"] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert found["froc_step_rule"] == pytest.approx((2 / 3 + 4 * 2 / 3) / 6)
    assert found["froc"] == pytest.approx((2 / 3 + 4 * 2 / 3) / 6)
    assert (found["n_slides"], found["n_lesions"], found["excluded"]) == (4, 3, [])
    assert found["slides"][1] == {
        "slide": "test_001",
        "detections": 4,
        "lesions": 2,
        "lesions_hit": 2,
        "false_positives": 1,
        "isolated_tumor_cells": 0,
    }
    reason = "too few slides for an interval: 2, at least 3 are needed"
    for figures in (found, found["all_thresholds"]):
        assert (figures["froc_interval"], figures["froc_interval_reason"]) == (None, reason)
    text = command("froc", cases / "detections", cases / "masks", "--exclude", "test_001", "--protocol", "camelyon16")
    assert "1 lesions on 3 slides" in text
    assert "left out: test_001" in text


def test_isolated_tumour_cells_are_neither_hit_nor_missed(tmp_path: Path) -> None:
    # 10 px are 78 um; with the 4 px that merging adds on each side still far below 275 um.
    write_case(tmp_path, "a", "0.9,800,800\n", square_mask((20, 20), edge=10))
    found = figures_of(tmp_path, "froc", tmp_path / "detections", tmp_path / "masks")
    assert (found["froc"], found["reason"]) == (None, "the slides have no lesions")
    assert found["n_isolated_tumor_cells"] == 1
    assert found["slides"][0]["false_positives"] == 0


def test_the_requested_level_of_a_mask_pyramid_is_read(tmp_path: Path) -> None:
    levels = [np.zeros((64 >> k, 96 >> k), np.uint8) for k in range(4)]
    levels[3][2, 3] = 255
    with tifffile.TiffWriter(tmp_path / "m.tif") as tiff:
        tiff.write(levels[0], subifds=3, photometric="minisblack")
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, photometric="minisblack")
    mask = read_mask(tmp_path / "m.tif", 3)
    assert mask.shape == (8, 12)
    assert np.argwhere(mask).tolist() == [[2, 3]]
    # Any other level would be measured at a wrong scale.
    with pytest.raises(PredictionError, match="it has 4 levels, and --level 5 is none of them"):
        read_mask(tmp_path / "m.tif", 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0.9,1,2\n0.8,x,4\n", "row 2: '0.8,x,4' is not confidence,x,y"),
        ("nan,1,2\n", "row 1"),
        ("0.9,1\n", "row 1"),
        ("0.9,1,2\n0.9,1\n", "row 2: 2 cells, the first row has 3"),
        ("1_0,1,2\n", "row 1"),
        ("0.9,1e300,2\n", "row 1"),
        ("-0.1,1,2\n", "the confidence -0.1 is below 0"),
    ],
)
def test_bad_rows_of_detections_are_named(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(rows)
    with pytest.raises(PipelineError) as caught:
        read_detections(tmp_path / "a.csv")
    assert message in str(caught.value)
    assert "a.csv" in str(caught.value)


def test_bad_folders_and_masks_are_named(cases: Path) -> None:
    def refused(message: str, *more: str) -> None:
        with pytest.raises(PipelineError, match=message):
            command("froc", cases / "detections", cases / "masks", *more)

    refused("no CSV of the excluded slide test_9", "--exclude", "test_9")
    (cases / "masks" / "Test_002_mask.png").write_bytes(b"no png")
    refused("a second mask of Test_002")
    (cases / "masks" / "Test_002_evaluation_mask.png").unlink()
    refused("Test_002_mask.png: not a mask")
    (cases / "masks" / "Test_002_mask.png").unlink()
    write_case(cases, "test_001", "0.9,1000,1000\n0.9,50000,10\n")
    refused("detection 2 at 50000, 10 lies outside the slide of 12800 x 9600 px")
    write_case(cases, "other", "", square_mask((9, 9)))
    (cases / "detections" / "other.csv").unlink()
    refused("other.tif: a mask of no slide that has a CSV")
    write_case(cases, "TEST_001", "")
    refused(r"test_001\.csv: a second CSV of test_001, beside TEST_001\.csv")
    with pytest.raises(PipelineError, match="no such folder"):
        command("froc", cases / "no", cases / "masks")
    with pytest.raises(PipelineError, match="no CSV files"):
        command("froc", cases / "masks", cases / "masks")


def write_scores(path: Path, rows: list[tuple[str, float, str]], header: str = "slide,score,label") -> Path:
    path.write_text(header + "\n" + "".join(f"{s},{v},{label}\n" for s, v, label in rows))
    return path


ROWS = [("a", 0.9, "tumor"), ("b", 0.8, "normal"), ("c", 0.7, "tumor"), ("d", 0.1, "normal"), ("e", 0.1, "tumor")]


def test_roc_of_a_table(tmp_path: Path) -> None:
    found = figures_of(tmp_path, "roc", write_scores(tmp_path / "a.csv", ROWS))
    # Pairs of tumour over normal: a 2, c 1, e a tie with d and below b: 3.5 of 6.
    assert found["auc"] == pytest.approx(3.5 / 6)
    assert (found["n_tumor"], found["n_normal"]) == (3, 2)
    assert found["auc_interval_reason"] == "too few slides for an interval: 2, at least 3 are needed"
    found = figures_of(tmp_path, "roc", write_scores(tmp_path / "b.csv", [*ROWS, ("f", 0.3, "normal")]))
    low, high = found["auc_interval"]
    assert low < 5.5 / 9 == found["auc"] < high
    perfect = write_scores(tmp_path / "c.csv", [(f"s{k}", k, "tumor" if k > 6 else "normal") for k in range(12)])
    found = figures_of(tmp_path, "roc", perfect)
    low, high = found["auc_interval"]
    assert 0.4 < low < 0.8
    assert high == 1
    text = command("roc", perfect)
    assert f"AUC 1.0000 (at least {low - 0.0005:.3f}); 5 tumour and 7 normal slides" in text


def test_two_models_on_the_same_slides(tmp_path: Path) -> None:
    one = write_scores(tmp_path / "a.csv", ROWS)
    other = write_scores(tmp_path / "b.csv", [(s, 1 - v, {"tumor": "1", "normal": "0"}[k]) for s, v, k in ROWS[::-1]])
    found = figures_of(tmp_path, "roc", one, "--against", other, "--permutations", 200)
    assert found["against"]["auc"] == pytest.approx(2.5 / 6)
    assert found["against"]["difference"] == pytest.approx(1 / 6)
    assert 0 < found["against"]["p_permutation"] <= 1
    assert (found["against"]["difference_interval"], found["against"]["p_delong"]) == (None, None)
    reason = "too few slides for an interval: 2, at least 3 are needed"
    assert found["against"]["difference_interval_reason"] == reason
    text = command("roc", one, "--against", other, "--permutations", 100)
    assert f"difference +0.1667 ({reason}); p not computed (DeLong)" in text


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], "no slide tells the models apart"),
        ([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0], "the difference is the same without each slide"),
        ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], "the difference is the same without each slide"),
        ([3, 5, 6], [3, 4, 2], "too few slides for an interval: 1, at least 3 are needed"),
    ],
)
def test_a_difference_without_an_interval_has_the_reason(
    tmp_path: Path, first: list[int], second: list[int], reason: str
) -> None:
    half = (len(first) + 1) // 2
    labels = ["normal"] * half + ["tumor"] * (len(first) - half)
    paths = [
        write_scores(tmp_path / f"{name}.csv", [(str(k), v, labels[k]) for k, v in enumerate(values)])
        for name, values in (("a", first), ("b", second))
    ]
    against = figures_of(tmp_path, "roc", paths[0], "--against", paths[1], "--permutations", 100)["against"]
    wanted = auc_of(first, labels) - auc_of(second, labels)
    assert against["difference"] == pytest.approx(wanted, abs=1e-12)
    assert (against["difference_interval"], against["difference_interval_reason"]) == (None, reason)
    assert reason in command("roc", paths[0], "--against", paths[1], "--permutations", 100)


def auc_of(scores: list[int], labels: list[str]) -> float:
    return float(sk.roc_auc_score([label == "tumor" for label in labels], scores))


def test_a_single_class_gives_null_with_the_reason(tmp_path: Path) -> None:
    found = figures_of(tmp_path, "roc", write_scores(tmp_path / "a.csv", ROWS[:1] + ROWS[2:3]))
    assert found["auc"] is None
    assert found["reason"] == "there are no normal slides"
    assert found["auc_interval"] is None


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, "slide,score,class", "columns slide, score, class, not slide, score, label"),
        ([*ROWS, ("a", 0.2, "normal")], "slide,score,label", "row 7: a occurs twice"),
        ([("a", float("nan"), "tumor")], "slide,score,label", "row 2: 'nan' and 'tumor' are no score and label"),
        ([("a", 0.3, "benign")], "slide,score,label", "'benign'"),
        ([], "slide,score,label", "no slides"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, rows: list[tuple[str, float, str]], header: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        command("roc", write_scores(tmp_path / "a.csv", rows, header))


def test_tables_with_different_slides_or_labels_are_refused(tmp_path: Path) -> None:
    one = write_scores(tmp_path / "a.csv", ROWS)
    with pytest.raises(PipelineError, match=r"e is only in .*a\.csv"):
        command("roc", one, "--against", write_scores(tmp_path / "b.csv", ROWS[:-1]))
    with pytest.raises(PipelineError, match="a has another label"):
        command("roc", one, "--against", write_scores(tmp_path / "b.csv", [("a", 0.9, "normal"), *ROWS[1:]]))
