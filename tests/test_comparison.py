"""The command compare: differences against direct computations, what it refuses, and what it writes."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from typer.testing import CliRunner

from helpers.compared import MODELS, PARTS, change_receipts, evaluate_again, evaluated, heat_of
from helpers.evaluated import SHEET, SLIDES, counted, maps, write_slide
from wsi_pipeline.cli import app as cli
from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import EvaluateRun
from wsi_pipeline.errors import ConfigError, IncompleteError, PipelineError, StoreError
from wsi_pipeline.evaluation.cohort_metrics import lesion_figures
from wsi_pipeline.evaluation.comparison import EvaluatedModel, compare_models
from wsi_pipeline.evaluation.slide_results import hits_of
from wsi_pipeline.io.layout import Layout
from wsi_pipeline.masks.label_images import TUMOR
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import DetectReceipt

pytestmark = pytest.mark.slow

FIGURES = ("slide_auc", "patch_auc", "froc", "froc_all_thresholds")


@pytest.fixture(scope="module")
def predicted(scored: Path, tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the three models with the outputs of the stages before the evaluation; tests must not change them."""
    root = tmp_path_factory.mktemp("models")
    (root / "a").symlink_to(scored)
    for model in MODELS[1:]:
        for slide in SLIDES:
            heat, truth = heat_of(model, slide), maps(slide)[1]
            write_slide(root / model, tissue_slide / "pyramid.ome.zarr", slide, heat, truth, model=64 * model)
    return root


@pytest.fixture(scope="module")
def results(predicted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(predicted, tmp_path_factory.mktemp("results"))


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(results, tmp_path / "copied"))


def compare(results: Path, *arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["compare", str(results), *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def compared(results: Path, folder: Path, *models: str) -> dict[str, Any]:
    compare(results, "--models", *models, "--output", folder)
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


def pair(found: dict[str, Any], figure: str, *models: str) -> dict[str, Any]:
    (one,) = (one for one in found["differences"][figure] if one["models"] == [*models])
    return one


def check(found: dict[str, Any], difference: float, changes: np.ndarray, tolerance: float) -> None:
    """Compare with standard error, interval and p value of the changes of a difference."""
    squares = changes**2
    error, freedom = np.sqrt(squares.sum()), squares.sum() ** 2 / (squares**2).sum()
    assert error > 10 * tolerance
    assert found["difference"] == pytest.approx(difference, abs=1e-12)
    assert found["standard_error"] == pytest.approx(error, abs=tolerance)
    reach = stats.t.ppf(0.975, freedom) * error
    limits = max(-1, difference - reach), min(1, difference + reach)
    assert found["difference_interval"] == pytest.approx(limits, abs=20 * tolerance)
    assert found["p_value"] == pytest.approx(2 * stats.t.sf(abs(difference) / error, freedom), abs=100 * tolerance)


def test_the_difference_of_slide_aucs_is_delongs(results: Path, tmp_path: Path) -> None:
    """Structural components over all pairs of a tumour and a normal slide (DeLong et al., 1988)."""
    found = compared(results, tmp_path, *MODELS)
    best = {model: {slide: np.nanmax(heat_of(model, slide)) for slide in SLIDES} for model in MODELS}
    tumor, normal = ([slide for slide in SLIDES if slide[0] == kind] for kind in "tn")
    wins = {m: np.array([[float(own[t] > own[n]) for n in normal] for t in tumor]) for m, own in best.items()}
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        psi = wins[one] - wins[other]
        changes = [(psi.mean(axis=axis) - psi.mean()) / np.sqrt(3 * 2) for axis in (0, 1)]
        check(pair(found, "slide_auc", one, other), psi.mean(), np.concatenate(changes), 1e-9)


def test_the_difference_of_patch_aucs_is_a_jackknife_over_slides(results: Path, tmp_path: Path) -> None:
    """The AUCs without each slide are scikit-learn's; those of the pipeline are binned, within 0.0005."""
    found = compared(results, tmp_path, *MODELS)

    def difference(slides: list[str]) -> float:
        truth = np.concatenate([maps(slide)[1][:5].ravel() == TUMOR for slide in slides])
        areas = [
            sk.roc_auc_score(truth, np.concatenate([counted(heat_of(model, slide)[:5]).ravel() for slide in slides]))
            for model in "ab"
        ]
        return float(areas[0] - areas[1])

    whole = difference([*SLIDES])
    changes = np.array([difference([one for one in SLIDES if one != slide]) for slide in SLIDES]) - whole
    check(pair(found, "patch_auc", "a", "b"), whole, changes, 1e-3)


@pytest.mark.parametrize("figure", ["froc", "froc_all_thresholds"])
def test_the_difference_of_froc_scores_is_a_jackknife_over_slides(copied: Path, tmp_path: Path, figure: str) -> None:
    """The lowest confidence of c is that of a lesion, which one of the figures leaves out."""
    hits = {
        "b": {"n1": [], "n2": [], "n3": [], "t1": [4.0], "t2": [None], "t3": [3.0]},
        "c": {"n1": [], "n2": [], "n3": [], "t1": [2.0], "t2": [3.0], "t3": [1.0]},
    }
    for model, of_slides in hits.items():
        for slide, lesions in of_slides.items():
            hit = {"lesions": lesions, "false_positives": [2.5]}
            change_receipts(copied, model, "detections", slide, lambda facts, hit=hit: facts.update(hit))
    found = compared(copied, tmp_path, *MODELS)

    def difference(slides: list[str], one: str, other: str) -> float:
        scores = []
        for model in (one, other):
            receipts = [read_receipt(copied / "detections" / model / f"{s}.json", DetectReceipt) for s in slides]
            own = lesion_figures([hits for one in receipts if (hits := hits_of(one))], EvaluateRun().interval)
            scores.append((own if figure == "froc" else own["all_thresholds"])["froc"])
        return float(scores[0] - scores[1])

    whole = difference([*SLIDES], "b", "c")
    parts = [difference([one for one in SLIDES if one != slide], "b", "c") for slide in SLIDES]
    check(pair(found, figure, "b", "c"), whole, np.array(parts) - whole, 1e-9)


def test_figures_are_those_of_the_evaluations_and_p_values_are_adjusted_by_figure(
    results: Path, tmp_path: Path
) -> None:
    found = compared(results, tmp_path, *MODELS)
    for model in found["models"]:
        metrics = json.loads((results / "evaluation" / model["name"] / "metrics.json").read_text())
        values = [metrics["slide"]["auc"], metrics["patch"]["auc"]]
        values += [metrics["lesion"]["froc"], metrics["lesion"]["all_thresholds"]["froc"]]
        assert [model["figures"][figure]["value"] for figure in FIGURES] == values
        assert model["model_sha256"] == 64 * model["name"]
        assert model["inputs_sha256"] == metrics["provenance"]["inputs_sha256"]
    for figure in FIGURES:
        pairs = found["differences"][figure]
        assert [one["models"] for one in pairs] == [["a", "b"], ["a", "c"], ["b", "c"]]
        tested = [one for one in pairs if one["p_value"] is not None]
        ordered = sorted(tested, key=lambda one: one["p_value"])
        wanted, highest = [], 0.0
        for k, one in enumerate(ordered):
            highest = min(1.0, max(highest, (len(tested) - k) * one["p_value"]))
            wanted.append(highest)
        assert [one["p_adjusted"] for one in ordered] == pytest.approx(wanted)
    two = compared(results, tmp_path / "two", "a", "b")
    assert all(one["p_adjusted"] == one["p_value"] for figure in FIGURES for one in two["differences"][figure])


def test_a_model_does_not_differ_from_itself(results: Path) -> None:
    model = EvaluatedModel.read(Layout(results, "b"))
    found = compare_models([model, model])
    for figure in FIGURES:
        (one,) = found["differences"][figure]
        assert (one["difference"], one["standard_error"], one["p_value"], one["p_adjusted"]) == (0, 0, 1, 1)
        assert one["difference_interval"] is None
        assert one["difference_interval_reason"] == "no slide tells the models apart"


def test_a_figure_that_no_slide_changes_has_no_variance_to_compare_with(results: Path) -> None:
    """As of a detector that hits every lesion: the interval would be that of the other model's figure alone."""
    one, other = (EvaluatedModel.read(Layout(results, name)) for name in "ab")
    perfect = replace(
        one,
        figures={**one.figures, "froc": {**one.figures["froc"], "value": 1.0}},
        changes={**one.changes, "froc": np.zeros(len(SLIDES))},
    )
    (found,) = compare_models([perfect, other])["differences"]["froc"]
    assert found["difference"] == 1 - other.figures["froc"]["value"]
    assert (found["difference_interval"], found["p_value"], found["p_adjusted"]) == (None, None, None)
    assert found["difference_interval_reason"] == "a has 1 whichever slide is left out: its variance is not known"


def test_the_order_of_models_and_of_the_sheet_changes_signs_only(
    predicted: Path, results: Path, tmp_path: Path
) -> None:
    turned = Sheet(dict(reversed(SHEET.items())))
    shuffled = evaluated(predicted, tmp_path / "results", dict.fromkeys(MODELS, turned))
    one, other = compared(results, tmp_path / "one", "a", "b"), compared(shuffled, tmp_path / "other", "b", "a")
    for figure in FIGURES:
        first, second = pair(one, figure, "a", "b"), pair(other, figure, "b", "a")
        assert first["difference"] == -second["difference"]
        assert first["standard_error"] == second["standard_error"]
        assert first["p_value"] == second["p_value"]
    compared(shuffled, tmp_path / "same", "a", "b")
    for name in ("compare.json", "compare.csv"):
        assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_cohort_that_is_counted_twice_has_the_same_differences(
    predicted: Path, results: Path, tmp_path: Path
) -> None:
    twice = tmp_path / "twice"
    for model in "ab":
        for part in PARTS:
            (twice / model / part).mkdir(parents=True)
            for path in (predicted / model / part).glob("*"):
                if path.suffix in (".json", ".parquet"):
                    for name in (path.name, f"z{path.name}"):
                        shutil.copy(path, twice / model / part / name)
        shutil.copy(predicted / model / "calibration.json", twice / model)
    sheet = Sheet({**SHEET, **{f"z{slide}": replace(row, slide=f"z{slide}") for slide, row in SHEET.items()}})
    found = compared(evaluated(twice, tmp_path / "results", dict.fromkeys("ab", sheet)), tmp_path / "out", "a", "b")
    once = compared(results, tmp_path / "once", "a", "b")
    for figure in FIGURES:
        first, second = pair(once, figure, "a", "b"), pair(found, figure, "a", "b")
        assert second["difference"] == pytest.approx(first["difference"], abs=1e-12)
        if first["standard_error"]:
            assert 0 < second["standard_error"] < first["standard_error"]


def test_differences_of_too_few_slides_have_no_interval(predicted: Path, tmp_path: Path) -> None:
    def of(slides: str) -> dict[str, Any]:
        sheet = Sheet({slide: SHEET[slide] for slide in slides.split()})
        folder = tmp_path / (slides or "none")
        return compared(evaluated(predicted, folder, dict.fromkeys("ab", sheet)), folder / "out", "a", "b")

    found = of("n1 n2 n3 t1 t2")
    for figure in FIGURES:
        (one,) = found["differences"][figure]
        assert one["difference"] is not None
        assert one["difference_interval_reason"] == "too few slides for an interval: 2, at least 3 are needed"
        assert (one["difference_interval"], one["standard_error"], one["p_value"], one["p_adjusted"]) == (None,) * 4
    reasons = {
        "n1 n2 n3": ("there are no tumour slides", "there are no tumour patches", "the slides have no lesions"),
        "": (
            "there are no normal and no tumour slides",
            "there are no normal and no tumour patches",
            "the slides have no lesions",
        ),
    }
    for slides, wanted in reasons.items():
        found = of(slides)
        for figure, reason in zip(FIGURES, (*wanted, wanted[2]), strict=True):
            (one,) = found["differences"][figure]
            assert (one["difference"], one["p_value"], one["reason"]) == (None, None, reason)


def test_models_of_other_slides_labels_or_missing_slides_are_refused(predicted: Path, tmp_path: Path) -> None:
    fewer = Sheet({slide: row for slide, row in SHEET.items() if slide != "n2"})
    folder = evaluated(predicted, tmp_path / "slides", {"a": SHEET, "b": fewer})
    for models in ("ab", "ba"):
        with pytest.raises(StoreError, match="slide n2: evaluated for the model a and not for b"):
            compare(folder, "--models", *models)
    unlabelled = Sheet({**SHEET, "t3": replace(SHEET["t3"], label=None)})
    folder = evaluated(predicted, tmp_path / "labels", {"a": SHEET, "b": unlabelled})
    with pytest.raises(StoreError, match="slide t3: the models a and b were evaluated with another label"):
        compare(folder, "--models", *"ab")
    more = Sheet({**SHEET, "x": replace(SHEET["n1"], slide="x")})
    folder = evaluated(predicted, tmp_path / "missing", {"a": SHEET})
    with pytest.raises(IncompleteError):
        evaluated(predicted, folder, {"b": more})
    with pytest.raises(IncompleteError, match=r"b/metrics\.json: slides without results: x\. Complete"):
        compare(folder, "--models", *"ab")


@pytest.mark.parametrize(
    ("part", "key", "value", "what"),
    [
        ("detections", "truth_sha256", "f" * 64, "truth image"),
        ("scores", "labels_sha256", "f" * 64, "patch positions"),
        ("scores", "features", None, "availability of predictions"),
        ("detections", "itc_um", 100.0, "protocol of lesions"),
        ("detections", "merge_um", 50.0, "protocol of lesions"),
    ],
)
def test_another_truth_is_refused(copied: Path, part: str, key: str, value: Any, what: str) -> None:
    def change(facts: dict[str, Any]) -> None:
        (facts if key in facts else facts["options"])[key] = value

    change_receipts(copied, "b", part, "n3 t1", change)
    with pytest.raises(StoreError, match=f"slide n3, t1: the models a and b were evaluated with another {what}"):
        compare(copied, "--models", *"ab")


def test_lesions_that_only_one_model_was_scored_on_are_refused(copied: Path) -> None:
    unknown = {"lesions": None, "false_positives": None, "isolated": None, "ignored": None, "reason": "not annotated"}
    change_receipts(copied, "c", "detections", "t2", lambda facts: facts.update(unknown))
    with pytest.raises(
        StoreError, match="slide t2: the models a and c were evaluated with another reason to leave out"
    ):
        compare(copied)


def test_other_rules_and_levels_are_refused(copied: Path) -> None:
    def change(facts: dict[str, Any]) -> None:
        facts["options"]["label_rule"] = "centre_region"

    for part in ("scores", "confusion"):
        for slide in SLIDES:
            path = copied / part / "b" / f"{slide}.json"
            facts = json.loads(path.read_text())
            change(facts)
            path.write_text(json.dumps(facts))
    evaluate_again(copied, "b")
    with pytest.raises(StoreError, match=r"slide n1, n2, n3, t1, t2, t3: .* another rule for the truth of patches"):
        compare(copied, "--models", *"ab")
    evaluate_again(copied, "c", interval={"level": 0.9})
    with pytest.raises(StoreError, match=r"models a and c have the levels 0\.95 and 0\.9"):
        compare(copied, "--models", *"ac")


def test_evaluations_of_other_results_are_refused(copied: Path) -> None:
    metrics = copied / "evaluation" / "b" / "metrics.json"
    content = json.loads(metrics.read_text())
    receipt = copied / "detections" / "b" / "t1.json"
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "detections": 99}))
    with pytest.raises(StoreError, match=r"b/metrics\.json: computed from other results of the slides\. Run the stage"):
        compare(copied)
    content["provenance"]["step_version"] -= 1
    metrics.write_text(json.dumps(content))
    with pytest.raises(
        StoreError, match=r"b/metrics\.json: written by step_version \d+ of the stage evaluate; this is"
    ):
        compare(copied)
    shutil.rmtree(metrics.parent)
    with pytest.raises(StoreError, match=r"b/metrics\.json: no evaluation of the model b\. Evaluated models: a, c"):
        compare(copied, "--models", *"ab")
    with pytest.raises(ConfigError, match=r"1 models to compare \(a\)\. Name at least two"):
        compare(copied, "--models", "a")
    with pytest.raises(ConfigError, match="the model a is named twice"):
        compare(copied, "--models", *"aba")
    with pytest.raises(PipelineError, match="0 models to compare"):
        compare(copied / "nowhere")


def test_models_are_named_in_each_of_the_usual_ways(results: Path) -> None:
    text = compare(results, "--models", *MODELS)
    assert compare(results) == text
    assert compare(results, "--models", "a", "--models", "b", "--models", "c") == text
    assert "3 models on the 6 test slides of cohort; 95 % intervals" in text
    assert re.search(r"^Patch AUC +a +0\.\d{4} \(", text, re.MULTILINE)
    assert re.search(
        r"^ +a - c +[+-]0\.\d{4} \([+-]\d\.\d{4} to [+-]\d\.\d{4}\) +p [\d.e-]+, by Holm [\d.e-]+$", text, re.MULTILINE
    )


def test_the_table_has_the_figures_of_the_json(results: Path, tmp_path: Path) -> None:
    found = compared(results, tmp_path, *MODELS)
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    values = {model["name"]: model["figures"] for model in found["models"]}
    for row in rows:
        one = pair(found, row["figure"], row["first"], row["second"])
        low, high = one["difference_interval"] or ("", "")
        wanted = [one["difference"], low, high, one["standard_error"], one["p_value"], one["p_adjusted"]]
        assert [row[key] for key in ("difference", "low", "high", "standard_error", "p_value", "p_adjusted")] == [
            *("" if value is None else str(value) for value in wanted)
        ]
        assert float(row["value_second"]) == values[row["second"]][row["figure"]]["value"]
    assert [*found["provenance"]["tables_sha256"]] == ["compare.csv"]


def test_the_page_shows_differences_and_curves_without_a_network(results: Path, tmp_path: Path) -> None:
    found = compared(results, tmp_path, *MODELS)
    html = (tmp_path / "compare.html").read_text()
    difference = pair(found, "patch_auc", "b", "c")
    assert f"<td>b - c</td><td>{difference['difference']:+.4f} (" in html
    assert f"by Holm {difference['p_adjusted']:.4g}</td>" in html
    own = re.sub(r"/\* BEGIN bokeh\.min\.js \*/.*?/\* END bokeh\.min\.js \*/", "", html, flags=re.DOTALL)
    assert {*re.findall(r"""(?:src|href|action)=["']?([^"'\s>]+)""", own)} == {"data:,"}
    assert "https:" not in own
    for title in ("ROC of slides", "ROC of patches", "FROC of lesions"):
        assert f'"text":"{title}"' in own
    # A legend has three names in each of three plots.
    assert [own.count(f'"label":{{"type":"value","value":"{model}"}}') for model in MODELS] == [3, 3, 3]


def test_a_curve_that_was_changed_is_refused(copied: Path, tmp_path: Path) -> None:
    path = copied / "evaluation" / "b" / "froc.csv"
    path.write_text(path.read_text() + "0,0,0,0\n")
    with pytest.raises(StoreError, match=r"froc\.csv: not the table that .* was written with"):
        compare(copied, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
