"""The list of receipts that a job of the whole cohort depends on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wsi_pipeline.cli.app import app
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.errors import SheetError, StoreError
from wsi_pipeline.stages import manifest

ROWS = [SlideRow("b", "b.tif", "train"), SlideRow("c", "c.tif", "test"), SlideRow("a", "a.tif", "train")]
PATCHES = ("{slide}/patches.json", "hard/{slide}.json")
AGAIN = "Delete it and run the stage that writes it again"


@pytest.fixture
def receipts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Receipts in the working directory: content by name."""
    monkeypatch.chdir(tmp_path)
    stages = {"a/patches.json": "patches", "b/patches.json": "patches", "hard/a.json": "negatives"}
    stages |= {"hard/b.json": "negatives", "c/scores.json": "scores"}
    for name, stage in stages.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f'{{"stage": "{stage}", "name": "{name}"}}')
    return {name: Path(name).read_bytes() for name in stages}


def written(*rows: SlideRow) -> str:
    manifest.run(Sheet({row.slide: row for row in rows}), {"train": PATCHES, "test": ["c/scores.json"]}, Path("m.tsv"))
    return Path("m.tsv").read_text()


def test_each_receipt_is_listed_with_its_checksum(receipts: dict[str, bytes]) -> None:
    expected = [("a", "negatives", "hard/a.json"), ("a", "patches", "a/patches.json")]
    expected += [
        ("b", "negatives", "hard/b.json"),
        ("b", "patches", "b/patches.json"),
        ("c", "scores", "c/scores.json"),
    ]
    rows = [f"{slide}\t{stage}\t{hashlib.sha256(receipts[name]).hexdigest()}\n" for slide, stage, name in expected]
    assert written(*ROWS) == "slide\tstage\tsha256\n" + "".join(rows)


def test_the_manifest_depends_on_any_receipt_but_not_on_the_sheet_order(receipts: dict[str, bytes]) -> None:
    before = written(*ROWS)
    assert written(*reversed(ROWS)) == before
    for name, content in receipts.items():
        Path(name).write_bytes(content + b"\n")
        assert written(*ROWS) != before
        Path(name).write_bytes(content)
    assert written(*ROWS) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such receipt. Run the stage that writes it first"),
        (b"{}", f"not a receipt ('stage'). {AGAIN}"),
        (b"\xff{", f"not a receipt ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte). {AGAIN}"),
        (b'{"stage"', f"not a receipt (Expecting ':' delimiter: line 1 column 9 (char 8)). {AGAIN}"),
        (b"3", f"not a receipt ('int' object is not subscriptable). {AGAIN}"),
        (b'{"stage": ["a"]}', f"not a receipt (its stage is no name). {AGAIN}"),
    ],
)
def test_a_bad_receipt_is_named(receipts: dict[str, bytes], content: bytes | None, message: str) -> None:
    receipt = Path("b/patches.json")
    receipt.unlink() if content is None else receipt.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        written(*ROWS)
    assert str(caught.value) == f"b/patches.json: {message}"
    assert not Path("m.tsv").exists()


def test_a_sheet_change_during_a_run_is_detected(receipts: dict[str, bytes]) -> None:
    rows = "".join(f"{row.slide}\t{row.path}\t{row.split}\tnormal\n" for row in ROWS)
    Path("s.tsv").write_text("slide\tpath\tsplit\tlabel\n" + rows)
    sheet = Sheet({row.slide: row for row in ROWS})
    command = ["manifest", "m.tsv", "--sheet", "s.tsv", "--train", "{slide}/patches.json"]
    # A change of the test slides does not affect training.
    app([*command, "--rows", sheet.digest("train")], standalone_mode=False)
    assert [line.split("\t")[0] for line in Path("m.tsv").read_text().splitlines()] == ["slide", "a", "b"]
    with pytest.raises(SheetError, match="has changed since the run began"):
        app([*command, "--rows", sheet.digest("test")], standalone_mode=False)
