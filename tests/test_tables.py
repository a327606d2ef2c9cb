from __future__ import annotations

import csv
import datetime
import io
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from openpyxl import Workbook

from wsi_pipeline.cohort.sheet import COLUMNS, load_sheet
from wsi_pipeline.cohort.tables import read_table, table_text
from wsi_pipeline.errors import SheetError

HEADER = ["slide", "path", "split", "centre", "notes"]
ROWS = [
    ["007", "s/a b.tif", "test", "München", "two\nlines"],
    ["b.1", "s/b;c.tif", "train", 'St. "Mary", east', ""],
    ["c", "s/{c}.tif", "test", '5" × 3"', "tab\there"],
]


def as_text(separator: str, end: str = "\n") -> str:
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows([HEADER, *ROWS])
    return text.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(("separator", "end"), [(",", "\n"), (";", "\r\n"), (",", "\r")])
def test_text_has_the_cells_that_pandas_reads(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    path = tmp_path / "sheet"
    path.write_bytes(as_text(separator, end).encode(encoding))
    expected = pd.read_csv(path, sep=separator, encoding=encoding, dtype=str, keep_default_na=False)
    table = read_table(path, COLUMNS)
    assert table.header == list(expected.columns) == HEADER
    # Line breaks inside cells are kept as they are in the file by both.
    assert [cells for _, cells in table.rows] == expected.to_numpy().tolist() == ROWS
    assert bool(table.warnings) == (encoding == "cp1252")


def test_tabs_separate_and_rows_have_the_numbers_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "sheet.tsv"
    path.write_text(
        '# 5" comment\nslide\tpath\tsplit\tcentre\n\nx\ta.tif\ttest\t"Univ.\nHospital"\n"#, y"\n\t\t\nz\tb\n'
    )
    table = read_table(path, COLUMNS)
    assert table.rows == [(4, ["x", "a.tif", "test", "Univ.\nHospital"]), (8, ["z", "b"])]


@pytest.mark.parametrize(
    "rows",
    [
        'x\ta.tif\ttest\t"St. Mary\ny\tb.tif\ttest\tB\n',
        'x\ta.tif\ttest\t"St." Mary\ny\tb.tif\ttest\tB\n',
        # The cells from one mark to the other would be one cell, and the slide y lost.
        'x\ta.tif\ttest\t"St. Mary\ny\tb.tif\ttest\tB"\n',
    ],
)
def test_an_unpaired_quotation_mark_is_named_with_its_row(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "sheet.tsv"
    path.write_text("slide\tpath\tsplit\tcentre\n" + rows)
    with pytest.raises(SheetError, match=r"row 2: a cell begins with a quotation mark"):
        read_table(path, COLUMNS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xd0\xcf\x11\xe0 workbook", "old or encrypted Excel workbook"),
        ("slide\tpath".encode("utf-16-le"), "neither text nor"),
        (b"\x81\x8d", "neither text nor"),
        (b"PK\x03\x04 damaged", "not an Excel workbook"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sheet.xls"
    path.write_bytes(content)
    with pytest.raises(SheetError, match=message):
        read_table(path, COLUMNS)


def test_another_zip_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sheet.ods", "w") as file:
        file.writestr("content.xml", "<office/>")
    with pytest.raises(SheetError, match=r"sheet\.ods: not an Excel workbook"):
        read_table(tmp_path / "sheet.ods", COLUMNS)


def test_a_workbook_is_the_sheet_that_its_text_is(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).touch()
    book = Workbook()
    book.worksheets[0].append(["# drawn by hand"])
    book.worksheets[0].append(["Slide", "Path", "Split", "mpp", "Patient", "Scanned"])
    book.worksheets[0].append([7, str(tmp_path / "a.tif"), "test", 0.25, 12345678901, datetime.date(2020, 1, 2)])
    book.worksheets[0]["A3"].number_format = "000"
    book.worksheets[0].append([])
    book.worksheets[0].append(["x", str(tmp_path / "b.tif"), "test", None, None, True])
    book.create_sheet("another").append(["slide"])
    book.save(tmp_path / "slides.xlsx")
    text = tmp_path / "slides.csv"
    text.write_text(
        f"slide,path,split,mpp,patient\n007,{tmp_path}/a.tif,test,0.25,12345678901\nx,{tmp_path}/b.tif,test,,\n"
    )
    assert load_sheet(tmp_path / "slides.xlsx") == load_sheet(text)
    # What the record of a run keeps.
    kept = tmp_path / "kept.tsv"
    kept.write_text(table_text(tmp_path / "slides.xlsx"))
    assert load_sheet(kept) == load_sheet(text)


def test_rows_of_a_workbook_have_their_numbers(tmp_path: Path) -> None:
    book = Workbook()
    book.worksheets[0].append(["slide", "path", "split"])
    book.worksheets[0].append([])
    book.worksheets[0].append(["x", "none.tif", "test"])
    book.save(tmp_path / "slides.xlsx")
    with pytest.raises(SheetError, match=r"slides\.xlsx, row 3 \(x\): path none\.tif does not exist"):
        load_sheet(tmp_path / "slides.xlsx")
