"""Tables as people save them: text from an editor or a spreadsheet, or an Excel workbook.

Text is UTF-8, UTF-16 with a byte order mark (Excel's "Unicode text") or Windows-1252, with tabs, commas or semicolons
between the cells, quoted as in RFC 4180.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from wsi_pipeline.errors import SheetError

if TYPE_CHECKING:
    from openpyxl.cell import Cell

_SEPARATORS = "\t,;"
_ZIP, _OLE2 = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_SAVE_AS_UTF8 = "Save it as UTF-8 text or as .xlsx"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells without surrounding spaces, each row with its number in the file; `header` is in lower case with `_`.

    Empty rows and rows whose first cell begins with # are left out.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    warnings: list[str]


def read_table(path: Path, columns: Collection[str]) -> Table:
    """Read a table; the separator of text is the one that finds most of `columns` in the first row.

    Raises `SheetError`.
    """
    data, found = _read(path), list[str]()
    if data.startswith(_ZIP):
        records = _workbook_rows(path, data)
    else:
        text, encoding = _decode(path, data)
        if encoding == "cp1252":
            found.append(f"{path}: not UTF-8, read as Windows-1252. {_SAVE_AS_UTF8} if letters are wrong")
        records = _text_rows(path, text, columns)
    rows = [(number, [cell.strip() for cell in cells]) for number, cells in records]
    rows = [(number, cells) for number, cells in rows if any(cells) and not cells[0].startswith("#")]
    if not rows:
        return Table([], [], found)
    return Table(_names(rows[0][1]), rows[1:], found)


def table_text(path: Path) -> str:
    """The table as text: that of the file, or of a workbook tab-separated values. Raises `SheetError`."""
    data = _read(path)
    if not data.startswith(_ZIP):
        return _decode(path, data)[0]
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(cells for _, cells in _workbook_rows(path, data))
    return text.getvalue()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SheetError(
            f"{path}: the slide sheet cannot be read ({error.strerror})", remedy="Set cohort.slides in the config"
        ) from error


def _names(cells: list[str]) -> list[str]:
    return ["_".join(re.split(r"[\s_-]+", cell.lower())) for cell in cells]


def _decode(path: Path, data: bytes) -> tuple[str, str]:
    """The text and its encoding. Windows-1252 takes almost any bytes, so it comes last."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    is_workbook = data.startswith(_OLE2)
    for encoding in () if is_workbook else ("utf-16",) if utf16 else ("utf-8-sig", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, encoding
    kind = "an old or encrypted Excel workbook" if is_workbook else "neither text nor an .xlsx workbook"
    raise SheetError(f"{path}: the slide sheet is {kind}", remedy=_SAVE_AS_UTF8)


def _text_rows(path: Path, text: str, columns: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    def known(separator: str) -> int:
        try:
            first = next(_records(path, text, separator), (0, []))
        except SheetError:
            return 0
        return len(set(columns).intersection(_names(first[1])))

    yield from _records(path, text, max(_SEPARATORS, key=known))


def _records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    lines = iter(io.StringIO(text, newline=""))
    number = 1
    for line in lines:
        count = 1
        if line.strip() and not line.startswith("#"):
            # One reader a row: it takes further lines only for a cell with line breaks, so that comments, whose
            # quotation marks mean nothing, stay outside, and `number` is that of the line.
            reader = csv.reader(chain([line], lines), delimiter=separator, strict=True)
            try:
                cells = next(reader)
            except csv.Error as error:
                raise _unpaired(path, number) from error
            # Between the quotation marks of two rows lie whole cells.
            if separator == "\t" and any("\t" in cell for cell in cells):
                raise _unpaired(path, number)
            yield number, cells
            count = reader.line_num
        number += count


def _unpaired(path: Path, number: int) -> SheetError:
    return SheetError(
        f'{path}, row {number}: a cell begins with a quotation mark (") that has no partner at the end of the cell',
        remedy="Delete it, or write it twice in a cell in quotation marks",
    )


def _workbook_rows(path: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Rows of the first worksheet."""
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as error:
        raise SheetError(
            f"{path}: reading an Excel workbook needs openpyxl",
            remedy="Install it (pip install 'wsi-pipeline[excel]'), or save the sheet as text",
        ) from error
    try:
        with warnings.catch_warnings():
            # About formats and validations of cells, which are not read.
            warnings.simplefilter("ignore")
            rows = load_workbook(io.BytesIO(data), data_only=True).worksheets[0].iter_rows()
    except (BadZipFile, LookupError, ValueError, TypeError, SyntaxError) as error:
        raise SheetError(f"{path}: not an Excel workbook ({error})", remedy=_SAVE_AS_UTF8) from error
    for number, cells in enumerate(rows, start=1):
        yield number, [_cell_text(cell) for cell in cells]


def _cell_text(cell: Cell) -> str:
    """The text of a cell: numbers with the 15 digits of Excel, and leading zeros where the cell's format has them."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, float | int) and not isinstance(value, bool):
        digits = len(cell.number_format) if re.fullmatch("0+", cell.number_format) else 0
        return f"{value:.15g}".zfill(digits)
    return str(value)
