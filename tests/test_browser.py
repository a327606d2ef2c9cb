"""The report and the viewer in a real browser: Debian's Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from playwright.sync_api import Browser, Page, sync_playwright
from scipy.special import expit

from helpers.browser import cells, matrix, opened, pixels, set_threshold, settle, until, until_shown
from helpers.viewer import served
from wsi_pipeline.cohort.sheet import Sheet
from wsi_pipeline.config import ReportRun
from wsi_pipeline.io.digests import digest_file
from wsi_pipeline.metrics.steps import dequantize
from wsi_pipeline.stages import report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
MODEL = "inception_v3"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


def truth_of(results: Path, slide: str) -> np.ndarray:
    """1 for positions on tumour, 0 for normal ones and -1 for others, from the confusion map (TN, FP, FN, TP, none)."""
    labels = np.asarray(zarr.open_array(results / "confusion" / MODEL / f"{slide}.ome.zarr" / "0", mode="r")[...])
    return np.select([labels <= 1, labels <= 3], [0, 1], -1)


def view(page: Page) -> dict[str, float]:
    return dict(page.evaluate("viewer.view"))


@pytest.fixture(scope="module")
def results(finished: Path) -> Path:
    return finished / "results"


@pytest.fixture(scope="module")
def metrics(results: Path) -> dict[str, Any]:
    return dict(json.loads((results / "evaluation" / MODEL / "metrics.json").read_text()))


def counts_of(results: Path, slides: list[str]) -> dict[str, int]:
    receipts = [json.loads((results / "confusion" / MODEL / f"{slide}.json").read_text()) for slide in slides]
    return {kind: sum(one["counts"][kind] for one in receipts) for kind in ("tn", "fp", "fn", "tp")}


def test_the_report_slider_matches_the_metrics(browser: Browser, results: Path, metrics: dict[str, Any]) -> None:
    point, test = metrics["operating_point"]["threshold"], metrics["cohort"]["test_slides"]
    with opened(browser, (results / "report.html").as_uri(), "report") as page:
        assert matrix(page, "#cohort-matrix") == metrics["confusion"]["counts"] == counts_of(results, test)
        for slide in test:
            page.select_option("#slide", slide)
            until_shown(page, slide)
            assert matrix(page, "#slide-matrix") == counts_of(results, [slide])
        set_threshold(page, 0.0)
        everything = matrix(page, "#cohort-matrix")
        assert everything["tn"] == everything["fn"] == 0
        assert everything["tp"] == metrics["patch"]["n_tumor"]
        assert everything["fp"] == metrics["patch"]["n_normal"]
        # The slider itself, at its maximum: no score has the probability 1.
        page.locator('[data-control="threshold-slider"]').focus()
        page.keyboard.press("End")
        assert page.input_value('[data-control="threshold"]') == "1"
        negatives = {"tn": metrics["patch"]["n_normal"], "fn": metrics["patch"]["n_tumor"]}
        assert matrix(page, "#cohort-matrix") == {"fp": 0, "tp": 0, **negatives}
        # At the edge of every step the pages count as the histograms: that of a score is included.
        tables = [pq.read_table(results / "scores" / MODEL / f"{slide}.parquet").to_pylist() for slide in test]
        rows = [row for table in tables for row in table]
        for step in sorted({row["score"] for row in rows})[::7]:
            edge = float(dequantize(np.array([step]))[0])
            set_threshold(page, float(expit(edge)))
            found = matrix(page, "#cohort-matrix")
            for kind, label in (("fp", "normal"), ("tp", "tumor")):
                assert found[kind] == sum(row[label] for row in rows if row["score"] >= step)
        page.click('[data-control="operating-point"]')
        assert matrix(page, "#cohort-matrix") == metrics["confusion"]["counts"]
        assert float(page.input_value('[data-control="threshold"]')) == point


def test_cohort_and_slide_matrices_agree_at_any_threshold(
    browser: Browser, results: Path, metrics: dict[str, Any]
) -> None:
    """The cohort's matrix comes from sums over all slides, a slide's matrix from its map."""
    with opened(browser, (results / "report.html").as_uri(), "report-thresholds") as page:
        steps = page.evaluate("[...new Set(viewer.slide.heat.steps)].sort((a, b) => a - b)")
        # Including thresholds equal to a score: a patch with exactly this score is called tumour.
        scores = expit(dequantize(np.array(steps))).tolist()
        for threshold in (0.001, 0.5, scores[len(scores) // 2], scores[-1], 1.0):
            set_threshold(page, threshold)
            whole = matrix(page, "#cohort-matrix")
            parts = []
            for slide in metrics["cohort"]["test_slides"]:
                page.select_option("#slide", slide)
                until_shown(page, slide)
                parts.append(matrix(page, "#slide-matrix"))
            assert whole == {kind: sum(part[kind] for part in parts) for kind in whole}


def test_the_overlay_follows_the_slider(browser: Browser, results: Path) -> None:
    with opened(browser, (results / "report.html").as_uri(), "report-slider") as page:
        page.select_option("#slide", "tumor-3")
        settle(page)
        # The scale bar covers cells.
        page.evaluate("viewer.panels.forEach((panel) => { panel.drawScaleBar = () => {}; })")
        page.uncheck('.wsi-panel >> nth=1 >> [data-layer="errors"]')
        settle(page)
        plain = cells(page, 1)
        page.check('.wsi-panel >> nth=1 >> [data-layer="errors"]')
        truth = truth_of(results, "tumor-3")
        # A model trained so briefly gives all patches the same score, so they get different ones.
        # From log odds of -14 to 12.
        scores = expit(dequantize(25000 + np.arange(truth.size).reshape(truth.shape) * 9973 % 15000))
        page.evaluate(
            "viewer.slide.heat.steps.forEach((_, cell, steps) => { steps[cell] = 25000 + (cell * 9973) % 15000; })"
        )
        middle = float(np.sort(scores[truth == 1])[(truth == 1).sum() // 2])
        # Each cell's kind, and what is blended over it at an opacity of 0.6: cyan, yellow or red.
        colors = {"fp": (0, 255, 255), "fn": (255, 255, 0), "tp": (255, 0, 0)}
        for threshold, shown in ((0.0, {"fp", "tp"}), (middle, {"fp", "tp", "fn", "tn"}), (1.0, {"fn", "tn"})):
            set_threshold(page, threshold)
            called = scores >= threshold
            of_kind = {"tn": (truth == 0) & ~called, "fp": (truth == 0) & called}
            of_kind |= {"fn": (truth == 1) & ~called, "tp": (truth == 1) & called}
            wanted = plain.copy()
            for kind, color in colors.items():
                wanted[of_kind[kind]] = 0.4 * plain[of_kind[kind]] + 0.6 * np.array(color)
            assert {kind for kind, which in of_kind.items() if which.any()} == shown
            assert np.abs(cells(page, 1) - wanted).max() <= 2


def test_the_heatmap_uses_the_chosen_colormap(browser: Browser, results: Path) -> None:
    with served(results) as url, opened(browser, f"{url}#tumor-3", "view-colours") as page:
        seen = []
        for name in ("viridis", "cividis", "magma", "turbo"):
            page.select_option('[data-control="colours"]', name)
            settle(page)
            seen.append(pixels(page, 1))
        assert len({tuple(one) for one in seen}) == 4
        # The choice stays in effect for other slides.
        page.evaluate("() => document.activeElement.blur()")
        for key, slide in (("p", "normal-3"), ("n", "tumor-3")):
            page.keyboard.press(key)
            until_shown(page, slide)
        settle(page)
        assert pixels(page, 1) == seen[-1]


def test_the_table_sorts_and_opens_slides(browser: Browser, results: Path, metrics: dict[str, Any]) -> None:
    with opened(browser, (results / "report.html").as_uri(), "report-table") as page:
        heads = page.locator("#slides thead th").all_inner_texts()
        column = heads.index("tn")

        def cells() -> list[int]:
            return [int(text) for text in page.locator(f"#slides tbody td:nth-child({column + 1})").all_inner_texts()]

        page.click(f"#slides thead th:nth-child({column + 1})")
        assert cells() == sorted(cells())
        page.click(f"#slides thead th:nth-child({column + 1})")
        assert cells() == sorted(cells(), reverse=True)
        assert page.locator("#slides tbody img").count() == len(metrics["cohort"]["test_slides"])
        page.click('#slides tr[data-slide="normal-3"]')
        until_shown(page, "normal-3")


def test_each_slide_has_its_own_page(browser: Browser, results: Path) -> None:
    with opened(browser, (results / "report.html").as_uri(), "report-link") as page:
        page.click("#slides a >> text=tumor-3")
        settle(page)
        assert page.url == (results / "report" / "tumor-3.html").as_uri()
        assert matrix(page, "#slide-matrix") == counts_of(results, ["tumor-3"])
        set_threshold(page, 0.0)
        assert matrix(page, "#slide-matrix")["fn"] == 0
        assert page.locator("#cohort-matrix td").count() == 0


def test_panels_move_together_and_layers_toggle_per_panel(browser: Browser, results: Path, tmp_path: Path) -> None:
    # A model trained so briefly detects nothing, so a detection is added.
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    detections = copy / "detections" / MODEL / "tumor-3.csv"
    detections.write_text("0.900000,700.0,500.0\n")
    receipt = json.loads(detections.with_suffix(".json").read_text())
    receipt["detections_sha256"] = digest_file(detections)
    detections.with_suffix(".json").write_text(json.dumps(receipt))
    with served(copy) as url, opened(browser, f"{url}#tumor-3", "view") as page:
        whole = view(page)
        box = page.locator(".wsi-canvas >> nth=0").bounding_box()
        assert box is not None
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        before = pixels(page, 1)
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] - 60, middle[1] - 40, steps=4)
        page.mouse.up()
        settle(page)
        moved = view(page)
        assert moved["x"] - whole["x"] == pytest.approx(60 / whole["scale"], rel=0.02)
        assert moved["y"] - whole["y"] == pytest.approx(40 / whole["scale"], rel=0.02)
        assert pixels(page, 1) != before  # The other panel moved too.
        page.mouse.wheel(0, -600)
        settle(page)
        assert view(page)["scale"] > 2 * whole["scale"]
        for layer in ("tissue", "truth", "heatmap", "errors", "detections"):
            for panel in (0, 1):
                switch = page.locator(f'.wsi-panel >> nth={panel} >> [data-layer="{layer}"]')
                page.keyboard.press("0")
                settle(page)
                was, other = pixels(page, panel), pixels(page, 1 - panel)
                switch.click()
                settle(page)
                assert pixels(page, panel) != was, (layer, panel)
                assert pixels(page, 1 - panel) == other, (layer, panel)


def test_keys_navigate_slides_and_errors(browser: Browser, results: Path) -> None:
    with served(results) as url, opened(browser, f"{url}#tumor-3", "view-error") as page:
        names = page.evaluate("[...document.querySelectorAll('nav button')].map(one => one.dataset.slide)")
        assert names == ["normal-1", "tumor-1", "tumor-2", "normal-3", "tumor-3"]
        page.keyboard.press("p")
        until_shown(page, "normal-3")
        page.keyboard.press("n")
        until_shown(page, "tumor-3")
        for threshold, key, kind in ((0.0, "f", "fp"), (1.0, "m", "fn")):
            set_threshold(page, threshold)
            # The slider has the focus after it was moved.
            page.locator('[data-control="threshold-slider"]').focus()
            page.keyboard.press(key)
            settle(page)
            assert page.evaluate(
                "kind => { const { heat } = viewer.slide, { x, y } = viewer.view;"
                " return heat.kind(heat.cellAt(x, y), wsi.thresholdStep(heat.threshold)) === kind; }",
                kind,
            )
            assert re.match(r"(false positive|missed tumour) 1 of \d+", page.inner_text("#jumped"))
        # The readout under the pointer.
        box = page.locator(".wsi-canvas >> nth=1").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert re.search(r"tumour probability [01]\.\d{4} · truth tumour", page.inner_text("#pointed"))
        # The address restores the view. It is updated when the view is at rest.
        page.wait_for_timeout(500)
        address, shown = page.url, view(page)
        page.goto("about:blank")
        page.goto(address)
        settle(page)
        assert view(page)["x"] == pytest.approx(shown["x"], abs=1)


def test_an_unfinished_run_is_shown_with_its_missing_stages(browser: Browser, results: Path, tmp_path: Path) -> None:
    half = tmp_path / "results"
    shutil.copytree(
        results, half, ignore=shutil.ignore_patterns("report.html", "evaluation", "confusion", "detections")
    )
    shutil.rmtree(half / "slides" / "normal-1")
    (half / "heatmaps" / MODEL / "normal-3.json").unlink()
    (half / "slides" / "tumor-2" / "truth.json").unlink()
    with served(half) as url, opened(browser, f"{url}#tumor-3", "view-half") as page:
        assert page.inner_text("#missing") == "tumor-3 has no confusion, detect yet."
        rows = dict(zip(page.locator("nav button").all_inner_texts(), range(5), strict=True))
        assert any("normal-1" in text and "without convert, tissue, truth" in text for text in rows)
        page.click('[data-slide="normal-3"]')
        until_shown(page, "normal-3")
        assert page.evaluate("viewer.slide.heat") is None
        page.click('[data-slide="normal-1"]')
        until(page, "viewer.slide === null")
        assert "normal-1 has no convert" in page.inner_text("#missing")
        page.click('[data-slide="tumor-1"]')
        until_shown(page, "tumor-1")
        assert page.inner_text("#missing") == ""  # A training slide needs no heatmap.
        page.click('[data-slide="tumor-2"]')
        until_shown(page, "tumor-2")
        settle(page)


def test_names_are_escaped(browser: Browser, results: Path, tmp_path: Path) -> None:
    """Titles, cohort names and labels may hold any text. Slide ids are restricted by the sheet."""
    hit = "document.body.dataset.hit=1"
    malicious = f"</script><script>{hit}</script><img src=x onerror={hit}> \"quoted\" 'name'"
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (record,) = (copy / "logs" / "runs").glob("*.json")
    content = json.loads(record.read_text())
    content["config"]["report"]["title"] = content["config"]["cohort"]["name"] = malicious
    content["sheet"]["text"] = content["sheet"]["text"].replace("\ttumor\t", f"\t{malicious}\t")
    record.write_text(json.dumps(content))
    with served(copy) as url, opened(browser, f"{url}#tumor-3", "view-names") as page:
        assert page.inner_text("#title") == malicious
        assert page.evaluate("document.body.dataset.hit") is None

    slides = copy / "evaluation" / MODEL / "slides.csv"
    slides.write_text(slides.read_text().replace(",tumor,", f',"{malicious.replace(chr(34), chr(34) * 2)}",'))
    metrics = json.loads((slides.parent / "metrics.json").read_text())
    metrics["provenance"]["tables_sha256"]["slides.csv"] = digest_file(slides)
    (slides.parent / "metrics.json").write_text(json.dumps(metrics))
    report.run(
        Sheet(), MODEL, report.Inputs(copy), report.Outputs(tmp_path / "report.html"), ReportRun(title=malicious)
    )
    with opened(browser, (tmp_path / "report.html").as_uri(), "report-names") as page:
        assert page.inner_text("h1") == malicious
        assert page.evaluate("document.body.dataset.hit") is None
