"""The sheet of Camelyon16, its dry run, and slides in a bucket."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from helpers.annotations import square, write_asap
from helpers.paths import DATA, ROOT, needs_data
from helpers.slides import tissue_picture, write_tiff
from helpers.workflow import CONFIG, snakemake
from wsi_pipeline.cohort.camelyon16 import NOT_EXHAUSTIVE, write_sheet
from wsi_pipeline.cohort.sheet import Sheet, load_sheet
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.provenance.ro_crate import write_crate

REFERENCE = DATA / "annotations" / "camelyon16-reference.csv"
BUCKET = "s3://camelyon-dataset/CAMELYON16"
PUBLIC = {"ACL": "public-read"}


def sheet_of(folder: Path, text: str, root: str = BUCKET, share: float = 0.5) -> Sheet:
    (folder / "reference.csv").write_text(f"image,type,class,center\n{text}")
    write_sheet(folder / "reference.csv", root, folder / "slides.tsv", share)
    return load_sheet(folder / "slides.tsv", check_files=False)


def test_rows_hold_what_is_known_about_the_slides(tmp_path: Path) -> None:
    sheet = sheet_of(
        tmp_path,
        "normal_001.tif,normal,negative,0\nnormal_086.tif,normal,negative,0\ntumor_010.tif,tumor,macro,0\n"
        "tumor_071.tif,tumor,micro,1\ntest_049.tif,tumor,macro,1\ntest_114.tif,tumor,macro,1\n"
        "test_003.tif,normal,negative,0\n",
        share=0,
    )
    assert list(sheet) == ["normal_001", "test_003", "test_114", "tumor_010", "tumor_071"]
    assert sheet["tumor_010"].path == f"{BUCKET}/images/tumor_010.tif"
    assert sheet["tumor_010"].annotation == f"{BUCKET}/annotations/tumor_010.xml"
    assert sheet["normal_001"].annotation is None
    assert [row.slide for row in sheet.values() if not row.exhaustive] == ["test_114", "tumor_010"]
    assert {row.slide: row.excluded_from for row in sheet.values() if row.excluded_from} == {
        "test_114": ("lesion-128",)
    }
    assert (sheet["tumor_071"].centre, sheet["normal_001"].centre) == ("utrecht", "radboud")
    assert sheet.of_split("test") == ["test_003", "test_114"]


def test_adding_slides_hardly_changes_the_validation_split(tmp_path: Path) -> None:
    names = [f"{kind}_{n:03d}.tif,{kind},x,{n % 2}" for kind in ("normal", "tumor") for n in range(1, 81)]
    held_out = set(sheet_of(tmp_path, "\n".join(names)).of_split("validation"))
    assert Counter(name.split("_")[0] for name in held_out) == {"normal": 40, "tumor": 40}
    more = names + [f"normal_{n:03d}.tif,normal,x,0" for n in range(101, 111)]
    again = set(sheet_of(tmp_path, "\n".join(more)).of_split("validation"))
    # Half of a stratum is for validation: ten more slides change the split of at most five others.
    others = {name for name in held_out ^ again if name < "normal_101" or name.startswith("tumor")}
    assert len(others) <= 5
    assert all(name.startswith("normal") for name in others)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,label\na,b\n", "no column image, type, center"),
        ("", "no column"),
        ("image,type,class,center\nx.tif,normal,y,0\n", "row 2: 'x.tif', 'normal', '0' are not a slide of Camelyon16"),
        ("image,type,class,center\ntest_001.tif,benign,y,0\n", "'benign'"),
        ("image,type,class,center\ntest_001.tif,normal,y,3\n", "row 2"),
    ],
)
def test_invalid_reference_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reference.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_sheet(tmp_path / "reference.csv", BUCKET, tmp_path / "slides.tsv", 0.2)
    assert not (tmp_path / "slides.tsv").exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        write_sheet(tmp_path / "no.csv", BUCKET, tmp_path / "slides.tsv", 0.2)


@needs_data
def test_the_sheet_has_all_399_slides(tmp_path: Path) -> None:
    assert write_sheet(REFERENCE, BUCKET, tmp_path / "slides.tsv", 0.2) == 399
    sheet = load_sheet(tmp_path / "slides.tsv", check_files=False)
    labels = Counter((row.split == "test", row.label) for row in sheet.values())
    assert labels == {(False, "normal"): 159, (False, "tumor"): 111, (True, "normal"): 80, (True, "tumor"): 49}
    assert {row.slide for row in sheet.values() if not row.exhaustive} == NOT_EXHAUSTIVE
    assert len(NOT_EXHAUSTIVE) == 21
    assert len(sheet.of_split("validation")) == pytest.approx(54, abs=2)
    assert len({row.patient for row in sheet.values()}) == 399


@needs_data
@pytest.mark.slow
@pytest.mark.workflow
def test_a_dry_run_plans_all_slides(tmp_path: Path) -> None:
    data = tmp_path / "CAMELYON16"
    write_sheet(REFERENCE, str(data), tmp_path / "config" / "camelyon16.tsv", 0.2)
    with (tmp_path / "config" / "camelyon16.tsv").open() as file:
        rows = list(csv.DictReader(file.readlines()[1:], delimiter="\t"))
    for path in (value for row in rows for value in (row["path"], row["annotation"]) if value):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    config = yaml.safe_load((ROOT / "config" / "camelyon16.yaml").read_text())
    result = snakemake(tmp_path, "--dry-run", "--quiet", "rules", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    for job, count in (("convert", 399), ("truth", 399), ("patches", 270), ("train", 1), ("heatmap", 129)):
        assert [job, str(count)] in [line.split() for line in result.stdout.splitlines()]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local S3 server with a bucket; it answers requests without credentials for public objects."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")  # noqa: S106
    client.create_bucket(Bucket="slides", ACL="public-read")
    yield "slides"
    server.stop()


@pytest.mark.slow
@pytest.mark.workflow
def test_slides_and_annotations_are_read_from_a_bucket(tmp_path: Path, bucket: str) -> None:
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")  # noqa: S106
    client.upload_file(str(write_tiff(tmp_path / "a.tif", tissue_picture())), bucket, "c/images/tumor_001.tif", PUBLIC)
    annotation = write_asap(tmp_path / "a.xml", [("_0", square(400, 400, 300))])
    client.upload_file(str(annotation), bucket, "c/annotations/tumor_001.xml", PUBLIC)
    sheet_of(tmp_path, "tumor_001.tif,tumor,macro,0\n", root=f"s3://{bucket}/c", share=0)
    cohort = {"slides": "slides.tsv", "public_buckets": True}
    result = snakemake(tmp_path, "results/slides/tumor_001/truth.json", config=CONFIG | {"cohort": cohort})
    assert result.returncode == 0, result.stdout + result.stderr
    assert '"polygons": 1' in (tmp_path / "results/slides/tumor_001/truth.json").read_text()
    again = snakemake(tmp_path, "results/slides/tumor_001/truth.json", "--dry-run", config=CONFIG | {"cohort": cohort})
    assert "Nothing to be done" in again.stdout + again.stderr
    crate = json.loads(write_crate(tmp_path / "results", tmp_path / ".snakemake", 1, "none").read_text())["@graph"]
    inputs = {one["name"]: one["object"] for one in crate if one["@id"].startswith("#job-")}
    assert inputs["convert"] == {"@id": f"s3://{bucket}/c/images/tumor_001.tif"}
    assert {"@id": f"s3://{bucket}/c/annotations/tumor_001.xml"} in inputs["truth"]
    # The downloaded slide is not kept.
    assert not list(tmp_path.rglob("tumor_001.tif"))


@pytest.mark.nightly
@pytest.mark.workflow
def test_results_in_a_bucket_equal_those_in_a_folder(
    finished: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    shutil.copytree(finished / "cohort", tmp_path / "cohort")
    storage = ["--default-storage-provider", "s3", "--default-storage-prefix", f"s3://{bucket}/run"]
    result = snakemake(tmp_path, *storage)
    assert result.returncode == 0, result.stdout + result.stderr
    client = boto3.client("s3", region_name="us-east-1")
    for name in ("evaluation/inception_v3/metrics.json", "slides/tumor-3/pyramid.json", "report/tumor-3.html"):
        stored = client.get_object(Bucket=bucket, Key=f"run/results/{name}")["Body"].read()
        assert stored == (finished / "results" / name).read_bytes(), name
    again = snakemake(tmp_path, *storage, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
    # Only run records and checkpoints stay local.
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["checkpoints", "logs"]
    frozen = snakemake(tmp_path, *storage, "--dry-run", config=CONFIG | {"training": {"retrain": "frozen"}})
    assert frozen.returncode == 1
    assert "Name its weights.safetensors in training.weights" in frozen.stdout + frozen.stderr
