from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import square, write_asap
from test_evaluate import folders_of, write_slide

from wsi_pipeline.config import EvaluateOptions, ReportRun, TruthOptions
from wsi_pipeline.sheet import Sheet, SlideRow
from wsi_pipeline.stages import evaluate, report, truth
from wsi_pipeline.summary import summary_text


@pytest.fixture(scope="module")
def results(tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated slides on the pyramid of the fixture, laid out as the workflow does."""
    root = tmp_path_factory.mktemp("results")
    sheet = Sheet()
    for slide, label in (("a", "normal"), ("b", "tumor")):
        folder = root / "slides" / slide
        folder.mkdir(parents=True)
        (folder / "pyramid.ome.zarr").symlink_to(tissue_slide / "pyramid.ome.zarr")
        xml = write_asap(folder / "a.xml", [("_0", square(200, 200, 400))]) if label == "tumor" else None
        truth.run(
            slide, folder / "pyramid.ome.zarr", folder / "truth.ome.zarr", folder / "truth.json", folder / "truth.png",
            TruthOptions(), annotation=xml, label=label,
        )  # fmt: skip
        heat = np.random.default_rng(0).uniform(0, 1, (6, 8))
        mask = np.zeros((6, 8), np.uint8)
        mask[1:3, 1:3] = label == "tumor"
        write_slide(root, folder / "pyramid.ome.zarr", slide, heat, mask)
        sheet[slide] = SlideRow(slide, "x.tif", "test", label=label)
    options = EvaluateOptions(synthetic=True, cohort_name="<script>alert(1)</script> & Co")
    evaluate.run(sheet, ("gone",), folders_of(root), root / "calibration.json", root / "evaluation", options)
    return root


def page(results: Path, out: Path, **options: Any) -> str:
    report.run(
        results / "slides", results / "heatmaps", results / "confusion", results / "evaluation", out / "report.html",
        ReportRun(synthetic=True, thumbnail_px=256, **options), Sheet(),
    )  # fmt: skip
    return (out / "report.html").read_text()


def test_the_page_says_what_the_metrics_say(results: Path, tmp_path: Path) -> None:
    html = page(results, tmp_path, title="A title")
    metrics = json.loads((results / "evaluation" / "metrics.json").read_text())
    assert "<title>A title</title>" in html
    assert f"{metrics['patch']['auc']:.4f}" in html
    assert "Synthetic slides, drawn by a program" in html
    assert "Excluded by the config: gone" in html
    assert html.count("data:image/jpeg;base64,") >= 6


def test_the_page_needs_no_network_and_escapes_names(results: Path, tmp_path: Path) -> None:
    html = page(results, tmp_path)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?http", html)
    assert "<script>alert(1)" not in html


def test_missing_slides_are_shown(results: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    for path in (results / "evaluation").iterdir():
        (evaluation / path.name).write_bytes(path.read_bytes())
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["cohort"] |= {"complete": False, "missing": ["c9"], "unread_positions": {"c1": 7}}
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "r").mkdir()
    report.run(
        results / "slides", results / "heatmaps", results / "confusion", evaluation, tmp_path / "r" / "report.html",
        ReportRun(), Sheet(),
    )  # fmt: skip
    html = (tmp_path / "r" / "report.html").read_text()
    assert "Incomplete: no results of c9." in html
    assert "Positions on damaged chunks, which no figure counts: c1 (7)." in html
    assert "incomplete, without c9" in summary_text(evaluation / "metrics.json", Path("r.html"))
