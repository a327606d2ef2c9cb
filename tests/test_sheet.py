from __future__ import annotations

from pathlib import Path

import pytest

from wsi_pipeline.cohort.sheet import COLUMNS, Sheet, SlideRow, load_sheet
from wsi_pipeline.config import TissueRun
from wsi_pipeline.errors import ConfigError, SheetError
from wsi_pipeline.io.fingerprints import Fingerprints

HEAD = "slide\tpath\tsplit\tlabel\tannotation\texhaustive\tpatient\tmpp\n"


def sheet_of(folder: Path, text: str, *files: str) -> Path:
    for name in ("a.tif", "b.tif", "a.xml", *files):
        (folder / name).touch()
    path = folder / "slides.tsv"
    path.write_text(text.replace("@", f"{folder}/"))
    return path


def test_three_columns_are_enough_for_a_test_slide(tmp_path: Path) -> None:
    sheet = load_sheet(sheet_of(tmp_path, "slide\tpath\tsplit\n007\t@a.tif\ttest\n"))
    assert list(sheet) == ["007"]
    assert sheet["007"].label is None


def test_an_annotation_implies_tumor_and_overrides_reach_the_options(tmp_path: Path) -> None:
    text = "slide\tpath\tsplit\tannotation\texhaustive\ttissue_threshold\nx\t@a.tif\ttrain\t@a.xml\tno\t30\n"
    row = load_sheet(sheet_of(tmp_path, f"# comment\n\n{text}"))["x"]
    assert (row.label, row.exhaustive) == ("tumor", False)
    assert row.tissue_options(TissueRun()).threshold == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "x\t@a.tif\ttest\nx\t@b.tif\ttest\n", "row 3 (x): the slide id occurs twice"),
        (HEAD + "a b\t@a.tif\ttest\n", "row 2 (a b): 'a b' cannot be a slide id"),
        (HEAD + "../x\t@a.tif\ttest\n", "cannot be a slide id"),
        (HEAD + "x\t@none.tif\ttest\n", "row 2 (x): path"),
        (HEAD + "x\t@a.tif\ttest\ttumor\t@none.xml\n", "annotation"),
        (
            "slide\tpath\tsplit\tannotation_origin\nx\t@a.tif\ttest\tcorner\n",
            "annotation_origin 'corner' is not one of canvas, bounds",
        ),
        (HEAD + "x\t@\ttest\n", "is a folder, not a file"),
        (HEAD + "x\t@a.tif\ttrain\ttumor\n", "a tumour training slide without annotation"),
        (HEAD + "x\t@a.tif\ttrain\n", "a training slide without label and annotation"),
        (HEAD + "x\t@a.tif\ttrain\tnormal\t\t\tp1\ny\t@b.tif\ttest\t\t\t\tp1\n", "row 3 (y): patient p1"),
        (HEAD + "x\t@a.tif\ttesting\n", "split 'testing' is not one of train, validation, test"),
        (HEAD + "x\t@a.tif\ttest\t\t\t\t\t1000\n", "mpp '1000' is not a number from 0.05 to 50"),
        (HEAD + "x\t@a.tif\ttest\t\t\t\t\tabc\n", "mpp 'abc'"),
        (HEAD + "x\t@a.tif\ttest\t\t\t\t\t\tnote\n", "row 2 (x): 9 cells, but 8 columns"),
        ("slide|path|split\n", "no column slide, path, split. The first row names the columns"),
        ("slide\tpaht\tsplit\n", "no column path (is it paht?)"),
        ("slide\tpath\tsplit\tSplit\n", "the column split occurs twice"),
        ("slide\tpath\tsplit\nx\ts3://b/{x}.tif\ttest\n", "s3://b/{x}.tif: braces"),
        (HEAD, "the sheet has no slides"),
        ("# only a comment\n", "no column slide, path, split"),
    ],
)
def test_mistakes_name_the_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SheetError) as caught:
        load_sheet(sheet_of(tmp_path, text))
    assert message in str(caught.value)


def test_all_mistakes_of_a_sheet_are_named_at_once_each_in_a_line(tmp_path: Path) -> None:
    rows = "x\t@none.tif\ttesting\t\t\t\t\t1000\n" + "x\t@a.tif\ttest\n" + "y z\t@b.tif\ttrain\n"
    with pytest.raises(SheetError) as caught:
        load_sheet(sheet_of(tmp_path, HEAD + rows))
    lines = str(caught.value).splitlines()
    assert [line.split(": ", 1)[0].removeprefix(f"{tmp_path}/slides.tsv, ") for line in lines] == [
        *["row 2 (x)"] * 3,
        "row 3 (x)",
        *["row 4 (y z)"] * 2,
    ]
    many = HEAD + "".join(f"x{number}\t@none.tif\ttest\n" for number in range(500))
    with pytest.raises(SheetError) as caught:
        load_sheet(sheet_of(tmp_path, many))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "480 more mistakes in the slide sheet"


def test_columns_are_found_in_any_case_and_others_are_ignored(tmp_path: Path) -> None:
    text = "Slide\tPATH\t Split\tTissue Threshold\tComments\t\t\nx\t@a.tif\tTest\t30,5\tfaded, old\t\t\n"
    sheet = load_sheet(sheet_of(tmp_path, text))
    assert sheet == {"x": SlideRow("x", f"{tmp_path}/a.tif", "test", tissue_threshold=30.5)}
    assert sheet.warnings == []


def test_an_ignored_column_with_nearly_the_name_of_another_is_told(tmp_path: Path) -> None:
    sheet = load_sheet(sheet_of(tmp_path, "slide\tpath\tsplit\tlable\tpatient\tpatients\nx\t@a.tif\ttest\n"))
    assert sheet.warnings == [
        f"{tmp_path}/slides.tsv: the column lable is ignored. Rename it if it is meant to be label"
    ]


def test_files_of_excluded_slides_may_be_missing(tmp_path: Path) -> None:
    path = sheet_of(tmp_path, HEAD + "x1\t@none.tif\ttest\nx2\t@b.tif\ttest\n")
    assert list(load_sheet(path, exclude=("x1",))) == ["x2"]


def test_a_file_twice_in_a_split_is_told_and_in_two_splits_refused(tmp_path: Path) -> None:
    (tmp_path / "c.tif").write_text("slide")
    (tmp_path / "d.tif").write_text("slide")
    rows = {
        name: SlideRow(name, str(tmp_path / f"{name}.tif"), split) for name, split in (("c", "test"), ("d", "test"))
    }
    (warning,) = Sheet(rows).check_splits(Fingerprints(tmp_path / "cache.json"))
    assert warning.startswith(f"slides c (test: {tmp_path}/c.tif) and d (test: {tmp_path}/d.tif) are the same file")
    rows["d"] = SlideRow("d", rows["d"].path, "train")
    with pytest.raises(SheetError, match=r"are the same file\. Keep each slide in one split"):
        Sheet(rows).check_splits(Fingerprints(tmp_path / "cache.json"))


def test_a_missing_sheet_is_named(tmp_path: Path) -> None:
    with pytest.raises(SheetError, match=r"nowhere\.tsv"):
        load_sheet(tmp_path / "nowhere.tsv")


def test_excluded_slides_are_left_out_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    path = sheet_of(tmp_path, HEAD + "x1\t@a.tif\ttest\nx2\t@b.tif\ttest\n")
    assert list(load_sheet(path, exclude=("x1",))) == ["x2"]
    with pytest.raises(ConfigError, match="no slide x3"):
        load_sheet(path, exclude=("x3",))


def test_sets_of_excluded_slides_are_named_as_in_the_sheet(tmp_path: Path) -> None:
    head = "slide\tpath\tsplit\texcluded_from\n"
    rows = "a\t@a.tif\ttest\t\nb\t@b.tif\ttest\tpaper short\nc\t@a.tif\ttest\tshort\nd\t@b.tif\tvalidation\tshort\n"
    sheet = load_sheet(sheet_of(tmp_path, head + rows), exclude=("c",))
    assert sheet["b"].excluded_from == ("paper", "short")
    assert sheet.left_out(["a", "b", "c"], "all") == {"left_out": [], "slide_set": "all"}
    assert sheet.left_out(["a", "c"], "all") == {"left_out": ["b"], "slide_set": "paper"}
    assert sheet.left_out(["a"], "all") == {"left_out": ["b", "c"], "slide_set": "short"}
    assert sheet.left_out(["b"], "all") == {"left_out": ["a", "c"], "slide_set": None}


def test_slides_in_a_bucket_are_not_checked_for_existence(tmp_path: Path) -> None:
    sheet = load_sheet(sheet_of(tmp_path, HEAD + "x\ts3://slides/x.tif\ttest\n"))
    assert sheet["x"].path == "s3://slides/x.tif"


def test_the_digest_changes_with_each_cell(tmp_path: Path) -> None:
    cells = {
        "slide": ("x", "y"),
        "path": ("@a.tif", "@b.tif"),
        "split": ("validation", "test"),
        "label": ("tumor", "normal"),
        "annotation": ("@a.xml", "@b.xml"),
        "annotation_origin": ("canvas", "bounds"),
        "exhaustive": ("yes", "no"),
        "patient": ("p1", "p2"),
        "centre": ("north", "south"),
        "mpp": ("0.25", "0.26"),
        "tissue_method": ("otsu_gray", "otsu_saturation"),
        "tissue_threshold": ("30", "31"),
        "excluded_from": ("paper", "paper short"),
    }
    assert tuple(cells) == COLUMNS

    def digest(*changed: str) -> str:
        row = (value[name in changed] for name, value in cells.items())
        text = "\t".join(cells) + "\n" + "\t".join(row) + "\n"
        return load_sheet(sheet_of(tmp_path, text, "b.xml")).digest()

    assert digest() == digest()
    # The same files in other places: their content is tracked by fingerprints.
    moved = {"path", "annotation"}
    assert {digest(name) for name in moved} == {digest()}
    assert len({digest(), *map(digest, cells.keys() - moved)}) == 1 + len(cells) - len(moved)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = ["b\t@a.tif\ttest\n", "c\t@a.tif\ttest\n", "a\t@a.tif\ttest\n"]
    header = "slide\tpath\tsplit\n"
    one, two = (load_sheet(sheet_of(tmp_path, header + "".join(order))) for order in (rows, rows[::-1]))
    assert list(one) == list(two) == one.of_split("test") == ["a", "b", "c"]
    assert one.digest() == two.digest()


def test_the_digest_of_a_split_depends_only_on_its_slide_ids() -> None:
    rows = {"a": SlideRow("a", "a.tif", "validation", label="tumor"), "b": SlideRow("b", "b.tif", "test")}
    sheet = Sheet(rows)
    more = Sheet({**rows, "c": SlideRow("c", "c.tif", "test")})
    elsewhere = Sheet({**rows, "a": SlideRow("a", "moved.tif", "validation", label="tumor", centre="north")})
    assert sheet.digest("validation") == more.digest("validation") == elsewhere.digest("validation")
    assert sheet.digest("test") != more.digest("test")
    assert len({sheet.digest(), more.digest(), elsewhere.digest()}) == 3
    more.check_digest(sheet.digest("validation"), "validation")
    with pytest.raises(SheetError, match="the slide sheet has changed since the run began"):
        more.check_digest(sheet.digest("test"), "test")
