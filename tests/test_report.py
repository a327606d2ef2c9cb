from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import zlib
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.annotations import square, write_asap
from helpers.evaluated import evaluate_inputs, write_slide
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import EvaluateRun, ReportRun, TissueRun, TruthRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.summary import summary_text
from wsi_pipeline.provenance.snakemake_metadata import finished_jobs, job_of_output
from wsi_pipeline.report.slide_data import heat_grid
from wsi_pipeline.stages import evaluate, report, tissue, truth


@pytest.fixture(scope="module")
def results(tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated slides with the pyramid of `tissue_slide`, in the folders of the workflow."""
    root = tmp_path_factory.mktemp("results")
    sheet = Sheet()
    for slide, label in (("a", "normal"), ("b", "tumor")):
        folder = root / "slides" / slide
        folder.mkdir(parents=True)
        for name in ("pyramid.ome.zarr", "pyramid.json"):
            (folder / name).symlink_to(tissue_slide / name)
        xml = write_asap(folder / "a.xml", [("_0", square(200, 200, 400))]) if label == "tumor" else None
        drawn = truth.Outputs(
            store=folder / "truth.ome.zarr",
            receipt=folder / "truth.json",
            picture=folder / "truth.png",
            geojson=folder / "truth.geojson",
        )
        truth.run(slide, truth.Inputs(folder / "pyramid.ome.zarr", xml), drawn, TruthRun(), label=label)
        found = [folder / f"tissue.{kind}" for kind in ("ome.zarr", "json", "png")]
        tissue.run(slide, tissue.Inputs(folder / "pyramid.ome.zarr"), tissue.Outputs(*found), TissueRun())
        heat = np.random.default_rng(len(sheet)).uniform(0, 1, (6, 8))
        mask = np.zeros((6, 8), np.uint8)
        mask[1:3, 1:3] = label == "tumor"
        write_slide(root, folder / "pyramid.ome.zarr", slide, heat, mask)
        sheet[slide] = SlideRow(slide, "x.tif", "test", label=label)
    options = EvaluateRun(synthetic=True, cohort_name="<script>alert(1)</script> & Co")
    sheet.excluded["gone"] = SlideRow("gone", "x.tif", "train")
    evaluate.run(sheet, evaluate_inputs(root), evaluate.Outputs(root / "evaluation"), options)
    return root


def page(results: Path, out: Path, **options: Any) -> str:
    given = ReportRun(synthetic=True, thumbnail_px=256, **options)
    report.run(Sheet(), None, report.Inputs(results), report.Outputs(out / "report.html"), given)
    return (out / "report.html").read_text()


def test_the_page_shows_the_metrics(results: Path, tmp_path: Path) -> None:
    html = page(results, tmp_path, title="A title")
    metrics = json.loads((results / "evaluation" / "metrics.json").read_text())
    assert "<title>A title</title>" in html
    assert f"{metrics['patch']['auc']:.4f}" in html
    assert "Synthetic slides, drawn by a program" in html
    assert "Excluded by the config: gone" in html
    assert "<th>detect: radius_um</th><td>100.0</td>" in html
    layers = [[one[name] is not None for name in ("slide", "tissue", "truth")] for one in shown(html)]
    assert layers == [[True, True, False], [True, True, True]]


def test_the_page_needs_no_network_and_escapes_names(results: Path, tmp_path: Path) -> None:
    html = page(results, tmp_path)
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; Co" in html
    # Bokeh has loaders of its own, which the page does not use; test_browser.py asserts that nothing is requested.
    own, count = re.subn(r"/\* BEGIN bokeh\.min\.js \*/.*?/\* END bokeh\.min\.js \*/", "", html, flags=re.DOTALL)
    assert count == 1
    texts = [own, *(path.read_text() for path in sorted((tmp_path / "report").iterdir()))]
    assert len(texts) == 3
    links = {target for text in texts for target in re.findall(r"""(?:src|href|action)=["']?([^"'\s>]+)""", text)}
    assert links == {"data:,", "report/a.html", "report/b.html"}
    for text in texts:
        # `fetch()` without an argument is a method of the panels.
        found = re.findall(
            r"https?:|\burl\(|@import|\bfetch\((?!\))|XMLHttpRequest|\bimport\s*[({\"'*]|WebSocket|EventSource|sendBeacon",
            text,
        )
        assert found == []


def test_names_that_look_like_bokeh_ids_are_kept(results: Path, tmp_path: Path) -> None:
    name = "0d5c3f52-9c0a-4c6b-8f3e-1f0d3c5b7a99"
    pages = [page(results, tmp_path / folder, title=name) for folder in ("a", "b")]
    assert f"<title>{name}</title>" in pages[0]
    assert (tmp_path / "a" / "report" / "a.html").read_text().count(f"<title>{name}: a</title>") == 1
    ids = [re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", one.replace(name, "")) for one in pages]
    assert ids[0] == ids[1]


def test_missing_slides_are_shown(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy, symlinks=True)
    path = copy / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["cohort"] |= {"complete": False, "missing": ["c9"], "unread_positions": {"c1": 7}}
    path.write_text(json.dumps(metrics))
    html = page(copy, tmp_path)
    assert "Incomplete: no results of c9." in html
    assert "Positions on damaged chunks, which no figure counts: c1 (7)." in html
    assert "incomplete, without c9" in summary_text(path, Path("r.html"))


@pytest.mark.parametrize("name", ["slides.csv", "roc.csv", "roc_band.csv", "pr.csv", "froc.csv"])
@pytest.mark.parametrize("change", ["edited", "missing", "older"])
def test_tables_of_other_metrics_are_refused(results: Path, tmp_path: Path, name: str, change: str) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy, symlinks=True)
    path = copy / "evaluation" / name
    if change == "edited":
        path.write_text(path.read_text().replace("0", "1", 1) + "\n")
    elif change == "missing":
        path.unlink()
    else:
        metrics = json.loads((path.parent / "metrics.json").read_text())
        del metrics["provenance"]["tables_sha256"]
        (path.parent / "metrics.json").write_text(json.dumps(metrics))
    named = "slides" if change == "older" else path.stem
    with pytest.raises(StoreError, match=rf"{named}\.csv: .*Run the stage evaluate again"):
        page(copy, tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["scores/a.parquet", "detections/a.csv"])
def test_files_that_do_not_match_their_receipt_are_refused(results: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy, symlinks=True)
    shutil.copy(copy / name.replace("a.", "b."), copy / name)
    with pytest.raises(StoreError, match=rf"{name}: .*its receipt is of another"):
        page(copy, tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.workflow
def test_the_page_shows_the_commands_that_ran(finished: Path) -> None:
    html = (finished / "results" / "report.html").read_text()
    found = re.findall(r"<dt>(\w+)</dt><dd><code>(.*?)</code></dd>", html)
    commands = {rule: unescape(command) for rule, command in found}
    assert list(commands) == [
        "convert",
        "tissue",
        "truth",
        "patches",
        "train",
        "heatmap",
        "scores",
        "confusion",
        "calibrate",
        "evaluate",
    ]
    assert " && wsi-pipeline detect --truth " in commands["scores"]
    ran = {job.command for job in finished_jobs(finished / ".snakemake")}
    assert set(commands.values()) <= ran
    assert "--slide normal-3 " in commands["heatmap"]


def test_a_job_is_found_by_an_output_with_a_long_name(tmp_path: Path) -> None:
    metadata = tmp_path / "metadata"
    record = {"rule": "convert", "shellcmd": "convert it", "starttime": 1, "endtime": 2, "input": []}
    long = "results/" + 99 * "long/" + "a.json"
    names = {"a.json": "YS5qc29u", long: base64.urlsafe_b64encode(long.encode()).decode()}
    assert len(names[long]) > 508
    parts = [names[long][:254], names[long][254:508], names[long][508:]]
    for place in (metadata / names["a.json"], metadata.joinpath(f"@{parts[0]}", f"@{parts[1]}", parts[2])):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(record))
    for output in names:
        job = job_of_output(tmp_path, output)
        assert job is not None and (job.command, job.outputs) == ("convert it", (output,))
    assert sorted(one for job in finished_jobs(tmp_path) for one in job.outputs) == sorted(names)
    (metadata / names["a.json"]).write_text(json.dumps({**record, "incomplete": True}))
    assert job_of_output(tmp_path, "a.json") is None
    assert job_of_output(tmp_path / "nowhere", "a.json") is None


def shown(html: str) -> list[dict[str, Any]]:
    """The data of each slide that the page holds."""
    _, *slides = re.findall(r'<script type="application/json" class="data">(.*?)</script>', html)
    return [json.loads(one) for one in slides]


def test_the_page_respects_its_size_limit(results: Path, tmp_path: Path) -> None:
    whole = page(results, tmp_path)
    assert [one["name"] for one in shown(whole)] == ["a", "b"]
    assert all(one["heat"]["every"] == 1 and max(one["pictureSize"]) == 256 for one in shown(whole))
    a, b = (len(json.dumps(one)) for one in shown(whole))
    # Space for little more than one slide with the smallest pictures.
    size = report.FIXED_BYTES + len(re.findall(r'class="data">(.*?)</script>', whole)[0]) + (a + b) * 0.35
    smaller = page(results, tmp_path, max_mb=size / 1e6)
    (left,) = shown(smaller)
    counts = {row["slide"]: int(row["fp"]) + int(row["fn"]) for row in slides_csv(results)}
    assert len(set(counts.values())) == 2
    assert left["name"] == max(counts, key=lambda name: counts[name])
    assert max(left["pictureSize"]) == 128
    assert "This page shows 1 of 2 slides, those with the most errors" in smaller
    assert "those with the most errors" not in whole


def test_each_slide_has_its_own_page(results: Path, tmp_path: Path) -> None:
    html = page(results, tmp_path, max_mb=0.1)
    assert shown(html) == []
    pages = sorted((tmp_path / "report").iterdir())
    assert [path.name for path in pages] == ["a.html", "b.html"]
    for path in pages:
        assert f'<a href="report/{path.name}">{path.stem}</a>' in html
        (slide,) = shown(path.read_text())
        assert slide["name"] == path.stem
        assert (slide["heat"]["every"], max(slide["pictureSize"])) == (1, 256)
        assert "Synthetic slides, drawn by a program" in path.read_text()
    # A second run deletes the pages of slides that no longer exist.
    (tmp_path / "report" / "old.html").touch()
    page(results, tmp_path)
    assert sorted((tmp_path / "report").iterdir()) == pages


def test_maps_get_coarser_before_slides_are_left_out(results: Path, tmp_path: Path) -> None:
    whole = page(results, tmp_path)
    maps = sum(len(json.dumps(one["heat"])) for one in shown(whole))
    shared = len(re.findall(r'class="data">(.*?)</script>', whole)[0])
    html = page(results, tmp_path, max_mb=(report.FIXED_BYTES + shared + 1.5 * maps) / 1e6)
    assert all(one["heat"]["every"] > 1 for one in shown(html))
    for one in shown(html):
        heat = one["heat"]
        content = zlib.decompress(base64.b64decode(heat["data"]))
        n = heat["columns"] * heat["rows"]
        assert len(content) == 3 * n
        grid = heat_grid(*(results / "heatmaps" / f"{one['name']}.{kind}" for kind in ("ome.zarr", "json")), None)
        every = heat["every"]
        assert np.array_equal(np.frombuffer(content, "<u2", n), grid.steps[::every, ::every].ravel())
        assert (heat["stride"], heat["patch"]) == (every * grid.stride_px, grid.patch_px)


def test_a_cohort_without_test_slides_has_a_report(results: Path, tmp_path: Path) -> None:
    for name in ("scores", "confusion", "detections"):
        (tmp_path / name).mkdir()
    inputs = evaluate_inputs(tmp_path, results / "calibration.json")
    evaluate.run(Sheet(), inputs, evaluate.Outputs(tmp_path / "evaluation"), EvaluateRun())
    html = page(tmp_path, tmp_path)
    assert "0 test slides" in html
    assert shown(html) == []


def slides_csv(results: Path) -> list[dict[str, str]]:
    with (results / "evaluation" / "slides.csv").open() as file:
        return list(csv.DictReader(file))
