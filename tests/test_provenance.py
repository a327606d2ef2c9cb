"""The RO-Crate of a finished run, and the verification of results against it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.workflow import CONFIG, snakemake
from wsi_pipeline.cli.app import app
from wsi_pipeline.config.loading import load_config
from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.digests import digest_tree
from wsi_pipeline.provenance.ro_crate import check_crate, write_crate
from wsi_pipeline.provenance.run_record import read_runs, record_run

pytestmark = pytest.mark.workflow

BY = "https://creativecommons.org/licenses/by/4.0/"


@pytest.fixture
def run(finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, whose run record names the folder of the copy."""
    for path in (run / "results" / "logs" / "runs").iterdir():
        path.write_text(path.read_text().replace(str(finished), str(run)))
    monkeypatch.chdir(run)
    return run


def crate(run: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """The entities of a new crate by id."""
    path = write_crate(run / "results", run / ".snakemake", 2, BY, **options)
    entities = json.loads(path.read_text())["@graph"]
    by_id = {entity["@id"]: entity for entity in entities}
    assert len(by_id) == len(entities)
    return by_id


def ids(value: dict[str, str] | list[dict[str, str]]) -> set[str]:
    return {one["@id"] for one in (value if isinstance(value, list) else [value])}


def test_the_crate_names_inputs_and_outputs_with_their_digests(run: Path) -> None:
    entities = crate(run)
    source = run / "cohort" / "tumor-3.tif"
    assert entities[source.as_uri()]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert source.with_suffix(".xml").as_uri() in entities
    metrics = entities["evaluation/inception_v3/metrics.json"]
    content = (run / "results" / metrics["@id"]).read_bytes()
    assert metrics["sha256"] == hashlib.sha256(content).hexdigest()
    assert metrics["contentSize"] == str(len(content))
    store = entities["slides/tumor-3/pyramid.ome.zarr/"]
    assert store["@type"] == "Dataset"
    assert store["sha256"] == digest_tree(run / "results" / store["@id"])
    assert ids(entities["./"]["hasPart"]) == {name for name, entity in entities.items() if "sha256" in entity}
    assert not [name for name in entities if ".zarr/" in name.rstrip("/")]


def test_the_crate_describes_jobs_software_config_and_sheet(run: Path) -> None:
    entities = crate(run, author="A. Pathologist")
    jobs = [entity for name, entity in entities.items() if name.startswith("#job-")]
    assert sorted(job["name"] for job in jobs).count("convert") == 5
    scores = next(job for job in jobs if "scores/inception_v3/tumor-3.json" in ids(job["result"]))
    assert scores["description"].startswith("wsi-pipeline scores --truth results/slides/tumor-3/truth.ome.zarr ")
    assert "heatmaps/inception_v3/tumor-3.ome.zarr/" in ids(scores["object"])
    converted = next(job for job in jobs if "slides/tumor-3/pyramid.json" in ids(job["result"]))
    assert ids(converted["object"]) == {(run / "cohort" / "tumor-3.tif").as_uri()}
    whole = entities["#run-1"]
    assert "--snakefile" in whole["description"]
    assert whole["startTime"] <= scores["startTime"] <= scores["endTime"] <= whole["endTime"]
    assert {"report.html", "evaluation/inception_v3/metrics.json"} < ids(whole["result"])
    assert ids(whole["instrument"]) == ids(entities["./"]["mainEntity"]) == {"provenance/workflow/Snakefile"}
    assert entities["#author"]["name"] == "A. Pathologist"
    assert entities["https://pypi.org/project/torch/"]["softwareVersion"].startswith("2.")
    config = json.loads((run / "results" / "provenance" / "config.json").read_text())
    assert config == load_config(CONFIG).model_dump(mode="json")
    sheet = (run / "results" / "provenance" / "slides.tsv").read_bytes()
    assert sheet == (run / "cohort" / "slides.tsv").read_bytes()
    assert digest_tree(run / "results" / "provenance" / "workflow") == digest_tree(ROOT / "workflow")
    assert "synthetic" in entities["./"]["description"]


def test_every_referenced_id_exists(run: Path) -> None:
    entities = crate(run, author="Someone")
    outside = {"https://bioschemas.org/profiles/", "https://doi.org/", "https://w3id.org/", "https://snakemake."}

    def referred(value: Any) -> set[str]:
        if isinstance(value, list):
            return {name for one in value for name in referred(one)}
        if isinstance(value, dict):
            return {value["@id"]} if set(value) == {"@id"} else {n for one in value.values() for n in referred(one)}
        return set()

    missing = referred(list(entities.values())) - set(entities)
    assert not [name for name in missing if not name.startswith(tuple(outside))]


@pytest.mark.slow
def test_a_second_snakemake_call_is_a_separate_run(run: Path) -> None:
    (run / "results" / "report.html").unlink()
    assert snakemake(run).returncode == 0
    # Neither of these two calls runs a job.
    assert snakemake(run).returncode == 0
    assert snakemake(run, "--dry-run", "--forceall").returncode == 0
    entities = crate(run)
    assert {name for name in entities if name.startswith("#run-")} == {"#run-1", "#run-2"}
    assert "result" not in entities["#run-1"]
    assert entities["#run-1"]["endTime"] < entities["#run-2"]["startTime"] < entities["#run-2"]["endTime"]


def test_a_workflow_change_after_the_run_is_reported(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (run / "results" / "logs" / "runs").iterdir():
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {"workflow_sha256": "0" * 64}))
    assert "changed after the last run" in crate(run)["./"]["description"]
    assert "the workflow has changed since the last run" in caplog.text


def test_verify_lists_the_changes(run: Path) -> None:
    crate(run)
    results = run / "results"
    assert not check_crate(results, 2)
    (results / "evaluation" / "inception_v3" / "roc.csv").write_text("fpr,tpr\n0,1\n")
    chunk = max((results / "slides" / "tumor-3" / "pyramid.ome.zarr").rglob("c/*/*/*"), key=lambda p: p.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    (results / "slides" / "tumor-3" / "truth.png").unlink()
    shutil.rmtree(results / "slides" / "tumor-3" / "tissue.ome.zarr")
    (results / "slides" / "stray.txt").touch()
    # Leftovers of a killed process.
    (results / "slides" / ".partial-0123abcd-x.ome.zarr").mkdir()
    (results / "slides" / ".partial-0123abcd-x.json").mkdir()
    annotation = run / "cohort" / "tumor-3.xml"
    annotation.write_text(annotation.read_text() + "\n")
    found = check_crate(results, 2)
    assert found.changed == [
        "evaluation/inception_v3/roc.csv",
        "slides/tumor-3/pyramid.ome.zarr/",
        str(annotation),
    ]
    assert found.missing == ["slides/tumor-3/tissue.ome.zarr/", "slides/tumor-3/truth.png"]
    assert found.new == ["slides/stray.txt"]
    assert str(annotation) not in check_crate(results, 2, sources=False).changed
    verified = CliRunner().invoke(app, ["verify", str(results)])
    assert verified.exit_code == 1
    assert "changed\tslides/tumor-3/pyramid.ome.zarr/" in verified.stdout
    assert verified.stdout.splitlines()[-1].endswith("3 changed, 2 missing, 1 new")


def test_the_commands_provenance_and_verify(run: Path) -> None:
    assert CliRunner().invoke(app, ["provenance", "results", "--license", BY]).exit_code == 0
    verified = CliRunner().invoke(app, ["verify", "results"])
    assert verified.exit_code == 0
    assert verified.stdout.splitlines()[-1].endswith("files and stores are unchanged; 0 changed, 0 missing, 0 new")


def test_missing_run_records_and_crates_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no record of a run in logs/runs\. Name a folder that Snakemake filled"):
        write_crate(tmp_path, tmp_path, 1, BY)
    with pytest.raises(StoreError, match=r"ro-crate-metadata\.json: missing\. Run wsi-pipeline provenance"):
        check_crate(tmp_path, 1)
    (tmp_path / "ro-crate-metadata.json").write_text('{"@graph": 3}')
    with pytest.raises(StoreError, match="not RO-Crate metadata"):
        check_crate(tmp_path, 1)


def test_unwritable_results_are_an_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"the results cannot be written .*Make the folder writable"):
        record_run(tmp_path / "file", load_config(CONFIG), ROOT / "workflow")
    assert len(read_runs(run / "results")) == 1
