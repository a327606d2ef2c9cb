"""The workflow: complete runs of a small cohort, interruptions, bad input, and its use as a module."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.mirax import write_mirax
from helpers.paths import DATA, ROOT, needs_data
from helpers.slides import tissue_picture, write_tiff
from helpers.workflow import (
    CONFIG,
    EVALUATION,
    TEST_JOBS,
    add_row,
    changed,
    planned,
    snakemake,
)
from wsi_pipeline.io.digests import digest_file, digest_tree
from wsi_pipeline.provenance.run_record import last_run

pytestmark = pytest.mark.workflow

# Metrics, figures of a slide, and the page of a slide: outputs that need the pixels of pyramids.
RESULTS_OF_PYRAMIDS = [
    "evaluation/inception_v3/metrics.json",
    "confusion/inception_v3/tumor-3.png",
    "slides/tumor-3/truth.png",
    "report/tumor-3.html",
]


def test_a_run_gives_metrics_pictures_and_a_report(finished: Path) -> None:
    results = finished / "results"
    metrics = json.loads((results / "evaluation" / "inception_v3" / "metrics.json").read_text())
    assert 0 <= metrics["patch"]["auc"] <= 1
    assert metrics["cohort"]["test_slides"] == ["normal-3", "tumor-3"]
    assert metrics["cohort"]["synthetic"] is True
    page = (results / "report.html").read_text()
    assert "Synthetic slides" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?http", page)
    for name in ("slides/tumor-3/tissue.png", "slides/tumor-3/truth.png", "confusion/inception_v3/tumor-3.png"):
        assert (results / name).stat().st_size > 5000
    assert not list(finished.glob("results/**/.partial-*"))


@pytest.mark.slow
def test_each_round_of_hard_negatives_gives_its_own_model(run: Path) -> None:
    config = changed(training={"hard_negatives": {"rounds": 2, "per_slide": 20}})
    # The first model stays; each round predicts both training slides and trains once; the last one is evaluated.
    rounds = {"heatmap": 2 * 2 + 2, "negatives": 2 * 2, "training_manifest": 2, "train": 2}
    evaluated = {"scores": 2, "calibrate": 1, "confusion": 2}
    assert planned(run, config) == rounds | evaluated | EVALUATION
    result = snakemake(run, "results/model/inception_v3-hard1/model.json", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    model = json.loads((run / "results" / "model" / "inception_v3-hard1" / "model.json").read_text())
    first = json.loads((run / "results" / "model" / "inception_v3" / "model.json").read_text())
    assert model["went_on_from"] == first["weights_sha256"]
    drawn = [
        json.loads((run / "results" / "negatives" / "inception_v3" / f"{slide}.json").read_text())["drawn"]["normal"]
        for slide in ("normal-1", "tumor-1")
    ]
    assert model["training"]["normal"] == first["training"]["normal"] + sum(drawn)


@pytest.mark.slow
def test_results_are_the_same_without_kept_pyramids(run: Path) -> None:
    config = changed(pyramid={"keep": False})
    before = {path: digest(run / "results" / path) for path in RESULTS_OF_PYRAMIDS}
    shutil.rmtree(run / "results")
    result = snakemake(run, config=config)
    assert result.returncode == 0, result.stderr
    assert {path: digest(run / "results" / path) for path in RESULTS_OF_PYRAMIDS} == before
    assert not list(run.glob("results/slides/*/pyramid.ome.zarr"))
    assert planned(run, config) == {}
    assert planned(run, config | {"evaluation": {"operating_point": {"threshold": 0.3}}}) == (
        {"calibrate": 1, "confusion": 2} | EVALUATION
    )
    # Jobs that need pixels reconvert their slides, and no others.
    assert planned(run, config | {"heatmap": {"stride_um": 40}}) == dict.fromkeys(TEST_JOBS, 2) | EVALUATION
    shutil.copy(run / "cohort" / "normal-3.tif", run / "cohort" / "normal-4.tif")
    add_row(run, "normal-3", "normal-4", path="cohort/normal-4.tif")
    assert planned(run, config) == TEST_JOBS | EVALUATION


def digest(path: Path) -> str:
    return digest_tree(path) if path.is_dir() else digest_file(path)


@pytest.mark.slow
def test_several_slides_per_job_and_tiff_export(run: Path) -> None:
    config = changed(heatmap={"slides_per_job": 2, "tiff": True})
    results = run / "results" / "heatmaps" / "inception_v3"
    before = {path.name: path.read_bytes() for path in results.glob("*.json")}
    assert len(before) == 2
    shutil.rmtree(results)
    shutil.rmtree(run / "results" / "checkpoints" / "predictions")
    predicted = {"predict": 1, "heatmap": 2, "export": 2}
    evaluated = {"scores": 2, "confusion": 2}
    assert planned(run, config) == predicted | evaluated | EVALUATION
    result = snakemake(run, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path.name: path.read_bytes() for path in results.glob("*.json")} == before
    assert {path.name for path in results.glob("*.tif")} == {"normal-3.tif", "tumor-3.tif"}
    logs = run / "results" / "logs"
    (predict_log,) = (logs / "predict" / "inception_v3").glob("*.log")
    assert predict_log.read_text().count("patches, ") == 2
    for slide in ("normal-3", "tumor-3"):
        assert "patches, " not in (logs / "heatmap" / "inception_v3" / f"{slide}.log").read_text()
    assert planned(run, config) == {}
    shutil.copy(run / "cohort" / "normal-3.tif", run / "cohort" / "normal-4.tif")
    add_row(run, "normal-3", "normal-4", path="cohort/normal-4.tif")
    assert planned(run, config) == TEST_JOBS | {"predict": 1, "export": 1} | EVALUATION


@pytest.mark.slow
def test_training_stopped_by_sigterm_resumes_in_the_next_attempt(run: Path) -> None:
    config = changed(training={"max_steps": 40, "epochs": 100})
    log, model = run / "results" / "logs" / "train" / "inception_v3.log", "results/model/inception_v3/model.json"
    stopper = threading.Thread(target=stop_training, args=(run, log))
    log.unlink()
    stopper.start()
    result = snakemake(run, model, "--retries", "1", config=config)
    stopper.join()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Trying to restart job" in result.stderr
    # The log is that of the second attempt.
    resumed = re.search(r"resuming from step (\d+)", log.read_text())
    assert resumed
    assert 2 <= int(resumed[1]) < 40
    assert json.loads((run / model).read_text())["steps"] == 40
    assert not list((run / "results" / "checkpoints" / "inception_v3").iterdir())


def stop_training(run: Path, log: Path) -> None:
    """Send SIGTERM to the training of a run once it has made two steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if log.exists() and "step 2:" in log.read_text():
            for process in psutil.process_iter(["cmdline", "cwd"]):
                command = process.info["cmdline"] or []
                if process.info["cwd"] == str(run) and "train" in command and "--checkpoints" in command:
                    process.terminate()
                    return
        time.sleep(0.05)


def test_given_weights_skip_patches_and_training(run: Path) -> None:
    shutil.copytree(run / "results" / "model" / "inception_v3", run / "theirs")
    config = changed(training={"weights": "theirs/weights.safetensors"}) | {"results": "other"}
    prepared = {"convert": 5, "tissue": 5, "truth": 2}
    predicted = {"train": 1, "heatmap": 2, "scores": 2, "calibrate": 1, "confusion": 2}
    assert planned(run, config) == prepared | predicted | EVALUATION


@pytest.mark.slow
def test_a_bad_slide_fails_alone_and_is_named(run: Path) -> None:
    (run / "cohort" / "bad.tif").write_text("not a slide")
    write_tiff(run / "cohort" / "no-scale.tif", tissue_picture(500, 400), mpp=None)
    shutil.copy(run / "cohort" / "normal-3.tif", run / "cohort" / "good.tif")
    for slide in ("bad", "no-scale", "good"):
        add_row(run, "normal-3", slide, path=f"cohort/{slide}.tif")
    result = snakemake(run, "--show-failed-logs")
    assert result.returncode != 0
    assert "error: slide bad: cohort/bad.tif: not a slide that OpenSlide can read" in result.stderr
    assert "error: slide no-scale: cohort/no-scale.tif" in result.stderr
    assert "Set the sheet's column mpp for it" in result.stderr
    assert "Traceback" not in (run / "results" / "logs" / "convert" / "bad.log").read_text()
    results = run / "results"
    assert not (results / "slides" / "bad" / "pyramid.ome.zarr").exists()
    assert (results / "confusion" / "inception_v3" / "good.json").is_file()
    partial = json.loads((results / "evaluation" / "inception_v3" / "partial" / "metrics.json").read_text())
    assert partial["cohort"]["missing"] == ["bad", "no-scale"]
    assert partial["cohort"]["complete"] is False
    assert "good" in partial["cohort"]["test_slides"]


@pytest.mark.slow
def test_a_sheet_change_during_a_run_is_detected(run: Path) -> None:
    records = run / "results" / "logs" / "runs"
    before = set(records.iterdir())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(snakemake, run, "--forcerun", "evaluate", "--show-failed-logs")
        # A record is written after planning and before the first job.
        while not set(records.iterdir()) - before:
            assert not running.done(), running.result().stderr
            time.sleep(0.005)
        add_row(run, "normal-3", "late", path="cohort/normal-3.tif")
        result = running.result()
    assert result.returncode != 0
    assert "error: the slide sheet has changed since the run began. Start it again" in result.stderr
    assert not (run / "results" / "evaluation" / "inception_v3" / "metrics.json").exists()


def test_a_clock_set_back_is_detected(run: Path) -> None:
    (record,) = (run / "results" / "logs" / "runs").iterdir()
    content = json.loads(record.read_text())
    content["started"] = "2099-01-01T12:00:00.000+00:00"
    record.write_text(json.dumps(content))
    result = snakemake(run, "--forcerun", "report")
    assert result.returncode != 0
    assert re.search(r"the clock of \S+ says .*, but a run of these results began on 2099-01-01 12:00", result.stderr)
    assert "Traceback (most recent call last)" not in result.stderr
    assert len(list((run / "results" / "logs" / "runs").iterdir())) == 1
    # A dry run is still possible.
    assert snakemake(run, "--dry-run").returncode == 0


@pytest.mark.parametrize(
    ("config", "sheet", "message"),
    [
        (changed(tissue={"metod": "x"}), None, "unknown key tissue.metod (did you mean method?)"),
        (changed(tissue={"mpp": 1000}), None, "tissue.mpp"),
        (CONFIG, "slide\tpath\tsplit\nx\tnowhere.tif\ttest\n", "row 2 (x): path nowhere.tif does not exist"),
        (CONFIG, "slide\tpath\tsplit\n", "the sheet has no slides"),
        (CONFIG, None, "the sheet has no training slide, so no model can be trained"),
        (CONFIG, "slide\tpath\tsplit\tlabel\nx\tx.tif\ttrain\tnormal\n", "no tumour training slide"),
        (changed(evaluation={"operating_point": {"rule": "youden"}}), None, "the sheet has no validation slide"),
        (changed(evaluation={"calibration": {"temperature": True}}), None, "the sheet has no validation slide"),
        (
            changed(training={"weights": "w.safetensors", "hard_negatives": {"rounds": 1}}),
            None,
            "hard_negatives.rounds must be 0",
        ),
        (changed(evaluation={"slide_level": {"score": "forest"}}), None, "lacks normal or tumour slides in training"),
    ],
)
def test_mistakes_are_found_before_any_job(
    tmp_path: Path, config: dict[str, Any], sheet: str | None, message: str
) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / "x.tif").touch()
    (tmp_path / "cohort" / "slides.tsv").write_text(sheet or "slide\tpath\tsplit\nx\tx.tif\ttest\n")
    result = snakemake(tmp_path, config=config)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback (most recent call last)" not in result.stderr
    assert not (tmp_path / "results").exists()


def test_the_sheet_says_how_tissue_is_found_for_the_check_of_an_annotation(tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    for name in "xyz":
        (tmp_path / f"{name}.tif").write_text(name)
    (tmp_path / "a.xml").touch()
    (tmp_path / "cohort" / "slides.tsv").write_text(
        "slide\tpath\tsplit\tlabel\tannotation\ttissue_method\ttissue_threshold\n"
        "x\tx.tif\ttrain\t\ta.xml\totsu_gray\t0\n"
        "y\ty.tif\ttrain\tnormal\t\totsu_gray\t\n"
        "z\tz.tif\ttest\t\ta.xml\t\t\n"
    )
    result = snakemake(tmp_path, "--dry-run", "--printshellcmds", "--until", "truth")
    assert result.returncode == 0, result.stdout + result.stderr
    flags = {
        line.split("--slide ")[1][0]: sorted(word for word in line.split() if word.startswith("--tissue-"))
        for line in (result.stdout + result.stderr).splitlines()
        if "wsi-pipeline truth " in line
    }
    assert flags == {"x": ["--tissue-method=otsu_gray", "--tissue-threshold=0.0"], "y": [], "z": []}


@pytest.mark.slow
def test_an_excel_sheet_and_a_folder_with_braces_change_no_result(run: Path) -> None:
    from openpyxl import Workbook

    rows = [line.split("\t") for line in (run / "cohort" / "slides.tsv").read_text().splitlines()[1:]]
    column = rows[0].index("path")
    folder = run / "cohort" / "{A 1}"
    folder.mkdir()
    for row in rows[1:]:
        row[column] = str(Path(run / row[column]).rename(folder / Path(row[column]).name))
    book = Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    book.save(run / "cohort" / "slides.xlsx")
    config = changed(cohort={"slides": "cohort/slides.xlsx"})
    assert planned(run, config) == {}
    result = snakemake(run, "--forcerun", "convert", "evaluation_manifest", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    record = last_run(run / "results")
    assert record is not None
    assert record["sheet"]["text"].splitlines()[0].split("\t") == rows[0]


@pytest.mark.slow
def test_paths_that_begin_with_a_dash_and_slides_of_several_files_are_tracked(tmp_path: Path) -> None:
    write_tiff(tmp_path / "-s.tif", tissue_picture())
    write_mirax(tmp_path / "m.mrxs", tissue_picture(1088, 848), corner=(2, 3), canvas=(16, 16))
    (tmp_path / "slides.tsv").write_text("slide\tpath\tsplit\ns\t-s.tif\ttest\nm\tm.mrxs\ttest\n")
    config = {"results": "results", "cohort": {"slides": "slides.tsv"}}
    targets = [f"results/slides/{slide}/tissue.json" for slide in "sm"]
    result = snakemake(tmp_path, *targets, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    data = bytearray((tmp_path / "m" / "Data0000.dat").read_bytes())
    # An entropy-coded byte of the last image.
    data[-40] ^= 1
    (tmp_path / "m" / "Data0000.dat").write_bytes(data)
    (tmp_path / "-s.tif").touch()
    result = snakemake(tmp_path, "-n", *targets, config=config)
    assert set(re.findall(r"wildcards: slide=(\w)", result.stdout)) == {"m"}
    (tmp_path / "m" / "Data0001.dat").unlink()
    result = snakemake(tmp_path, *targets, config=config)
    assert result.returncode != 0
    assert "its file m/Data0001.dat is missing" in (tmp_path / "results" / "logs" / "convert" / "m.log").read_text()


@pytest.mark.slow
@needs_data
def test_real_level_7_slides_go_through_tissue_and_truth(tmp_path: Path) -> None:
    source = DATA / "camelyon16-level7"
    rows = [f"{n}\t{source}/{n}_level7.tif\ttest\t{source}/{n}_level7.xml" for n in ("tumor_072", "tumor_102")]
    (tmp_path / "slides.tsv").write_text("\n".join(["slide\tpath\tsplit\tannotation", *rows]) + "\n")
    config = {"results": "results", "cohort": {"slides": "slides.tsv"}}
    slides = tmp_path / "results" / "slides"
    targets = [f"results/slides/{n}/{stage}.json" for n in ("tumor_072", "tumor_102") for stage in ("tissue", "truth")]
    result = snakemake(tmp_path, *targets, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    areas = {n: json.loads((slides / n / "truth.json").read_text())["tumor_mm2"] for n in ("tumor_072", "tumor_102")}
    assert areas == pytest.approx({"tumor_072": 6.014, "tumor_102": 16.545}, rel=0.001)
    assert all((slides / n / f"{stage}.png").is_file() for n in areas for stage in ("tissue", "truth"))


def test_the_workflow_can_be_used_as_a_module(run: Path) -> None:
    (run / "Snakefile").write_text(
        f'module wsi:\n    snakefile: "{ROOT}/workflow/Snakefile"\n    config: config\n\n'
        'use rule * from wsi as wsi_*\n\nrule mine:\n    default_target: True\n    input: "results/report.html"\n'
        "    output: 'mine.txt'\n    shell: 'touch {output}'\n"
    )
    shutil.rmtree(run / "results" / "confusion")
    result = snakemake(run, "--dry-run", "--forcerun", "wsi_tissue", "--snakefile", "Snakefile")
    assert result.returncode == 0, result.stdout + result.stderr
    table = (result.stdout + result.stderr).split("Job stats:")[1].split("total")[0]
    assert re.search(r"^wsi_tissue\s+5$", table, re.MULTILINE)
    assert re.search(r"^mine\s+1$", table, re.MULTILINE)


@pytest.mark.slow
def test_a_module_runs_its_checks_and_records_its_runs(run: Path) -> None:
    page = (ROOT / "docs" / "module.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    (run / "Snakefile").write_text(example.replace("/path/to/wsi-pipeline", str(ROOT)))
    records = run / "results" / "logs" / "runs"
    before = set(records.iterdir())
    config = changed(report={"title": "Other"})
    result = snakemake(run, "--snakefile", "Snakefile", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    (record,) = set(records.iterdir()) - before
    facts = json.loads(record.read_text())
    assert (facts["workflow"], facts["config"]["report"]["title"]) == (str(ROOT / "workflow"), "Other")
    assert (run / "results" / "table.txt").read_text().startswith("slide,")
    assert "<title>Other" in (run / "results" / "report.html").read_text()
    (run / "cohort" / "tumor-3.xml").write_text("no XML")
    result = snakemake(run, "--snakefile", "Snakefile", config=config)
    assert result.returncode == 1
    partial = run / "results" / "evaluation" / "inception_v3" / "partial" / "metrics.json"
    assert json.loads(partial.read_text())["cohort"]["complete"] is False
    (run / "results" / "logs" / "runs" / record.name).write_text(
        json.dumps({**facts, "started": "2999-01-01T00:00:00+00:00"})
    )
    result = snakemake(run, "--snakefile", "Snakefile", "--forcerun", "report", config=config)
    assert result.returncode == 1
    assert "Set the clock" in result.stdout + result.stderr


@pytest.mark.slow
def test_the_planning_benchmark_creates_the_inputs_of_all_rules() -> None:
    scale = runpy.run_path(str(ROOT / "benchmarks" / "scale.py"))
    # Four training slides with four jobs each, two test slides with six jobs each, training, calibration, evaluation,
    # report, all and two manifests.
    assert scale["run"](6).startswith("| 6 | 35 | ")
