"""The slide sheet: a table with a row for each slide, as text or as an Excel workbook (`cohort/tables.py`).

Required columns: `slide, path, split`. Optional: `label, annotation, annotation_origin, exhaustive, patient,
centre, mpp, tissue_method, tissue_threshold, excluded_from`. An empty cell and an omitted column mean "unknown"; other
columns are ignored. Paths are relative to the working directory, or s3:// URLs.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast, get_args

from wsi_pipeline.cohort.tables import read_table
from wsi_pipeline.config import CLASSES, NAME_PATTERN, EvaluationOptions, TissueRun
from wsi_pipeline.config.base import MPP_RANGE, Origin, TissueMethod
from wsi_pipeline.config.loading import validate
from wsi_pipeline.errors import ConfigError, SheetError
from wsi_pipeline.io.digests import digest_json
from wsi_pipeline.io.fingerprints import EMPTY, UNREADABLE, Fingerprints

REMOTE = "s3://"
SPLITS = ("train", "validation", "test")
REQUIRED = ("slide", "path", "split")
# Similarity of an unknown column to a known one (difflib) from which it looks misspelt: lable, exhaustiv, center.
_SIMILAR = 0.75


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One slide of the sheet. `label` is None where neither the column label nor an annotation determines it."""

    slide: str
    path: str
    split: str
    label: str | None = None
    annotation: str | None = None
    annotation_origin: Origin | None = None
    exhaustive: bool = True
    patient: str | None = None
    centre: str | None = None
    mpp: float | None = None
    tissue_method: TissueMethod | None = None
    tissue_threshold: float | None = None
    excluded_from: tuple[str, ...] = ()

    def tissue_options(self, options: TissueRun) -> TissueRun:
        """The config's tissue options with this row's overrides."""
        overrides = {"method": self.tissue_method, "threshold": self.tissue_threshold}
        given = {key: value for key, value in overrides.items() if value is not None}
        return validate(TissueRun, {**options.model_dump(), **given}, f"slide {self.slide}")


COLUMNS = tuple(field.name for field in fields(SlideRow))


class Sheet(dict[str, SlideRow]):
    """Rows by slide id; `excluded` holds the rows that the config excludes.

    Both are sorted by slide id, so that no result depends on the order of the file's lines. `warnings` are about the
    file, one line each.
    """

    def __init__(self, rows: Mapping[str, SlideRow] | None = None) -> None:
        super().__init__(sorted((rows or {}).items()))
        self.excluded = dict[str, SlideRow]()
        self.warnings = list[str]()

    def of_split(self, *splits: str) -> list[str]:
        """Ids of the slides of these splits, sorted."""
        return [row.slide for row in self.values() if row.split in splits]

    def left_out(self, used: Collection[str], whole: str) -> dict[str, Any]:
        """The test slides that a figure over the slides `used` omits, and the name of the set that it covers.

        The name is `whole` where no slide is omitted, otherwise that of the set that omits exactly these slides
        (column excluded_from), or None.
        """
        tests = [row for row in (*self.values(), *self.excluded.values()) if row.split == "test"]
        missing = {row.slide for row in tests} - set(used)
        sets: dict[str, set[str]] = {}
        for row in tests:
            for name in row.excluded_from:
                sets.setdefault(name, set()).add(row.slide)
        names = [name for name in sorted(sets) if sets[name] == missing]
        return {"left_out": sorted(missing), "slide_set": names[0] if names else None if missing else whole}

    def check_splits(self, fingerprints: Fingerprints) -> list[str]:
        """Raise `SheetError` where a slide occurs in two splits, as one file or as copies.

        Returns a warning for each slide that occurs twice in one split.
        """
        fingerprints.read(row.path for row in self.values() if not is_remote(row.path))
        found: dict[str, SlideRow] = {}
        mistakes, repeated = list[SheetError](), list[str]()
        for row in self.values():
            content = row.path if is_remote(row.path) else fingerprints[row.path]
            if content in (EMPTY, UNREADABLE):
                continue
            first = found.setdefault(content, row)
            problem = (
                f"slides {first.slide} ({first.split}: {first.path}) and {row.slide} ({row.split}: {row.path}) are "
                "the same file"
            )
            if first.split != row.split:
                mistakes.append(SheetError(problem, remedy="Keep each slide in one split"))
            elif first is not row:
                repeated.append(f"{problem}, which then counts twice. Delete one of the rows")
        if mistakes:
            raise SheetError.of(mistakes)
        return repeated

    def check_training(self) -> None:
        """Raise `SheetError` where no model can be trained on these slides."""
        labels = {self[slide].label for slide in self.of_split("train")}
        if "tumor" not in labels:
            missing = "training slide" if not labels else "tumour training slide"
            raise SheetError(
                f"the sheet has no {missing}, so no model can be trained",
                remedy="Add annotated tumour slides with the split train, or set training.weights to a trained model",
            )

    def check_evaluation(self, options: EvaluationOptions) -> None:
        """Raise `SheetError` where slides are missing that the evaluation fits or selects on."""
        if options.uses_validation and not self.of_split("validation"):
            raise SheetError(
                "the sheet has no validation slide, on which the operating point or the temperature could be chosen",
                remedy="Add annotated validation slides, or set evaluation.operating_point.rule to fixed and "
                "evaluation.calibration.temperature to false",
            )
        labels = {self[slide].label for slide in self.of_split("train", "validation")}
        if options.slide_level.score == "forest" and not {"normal", "tumor"} <= labels:
            raise SheetError(
                "the sheet lacks normal or tumour slides in training and validation, on which the forest could be "
                "fitted",
                remedy="Add such slides, or set evaluation.slide_level.score to maximum",
            )

    def digest(self, *splits: str) -> str:
        """SHA-256 of all rows, or, with `splits`, of the slide ids in these splits only.

        Paths are left out: slides and annotations are the same wherever they lie.
        """
        if splits:
            return digest_json([(row.slide, row.split) for row in self.values() if row.split in splits])
        return digest_json([asdict(replace(row, path="", annotation=None)) for row in self.values()])

    def check_digest(self, expected: str | None, *splits: str) -> None:
        """Raise `SheetError` where the digest differs from `expected`."""
        if expected is not None and self.digest(*splits) != expected:
            raise SheetError("the slide sheet has changed since the run began", remedy="Start it again")


def load_sheet(path: Path, *, exclude: tuple[str, ...] = (), check_files: bool = True) -> Sheet:
    """Read and check a sheet. Raises `SheetError`, with a line for each mistake that names its row.

    Slides in `exclude` are moved to `excluded`. With `check_files` each slide and annotation of the others must exist.
    Raises `ConfigError` for an unknown slide in `exclude`.
    """
    table = read_table(path, COLUMNS)
    mistakes = _Mistakes(str(path))
    _check_header(table.header, mistakes)
    rows: dict[str, SlideRow] = {}
    patients: dict[str, SlideRow] = {}
    for number, values in table.rows if not mistakes.found else ():
        cells = {name: value for name, value in zip_longest(table.header, values, fillvalue="") if name}
        mistakes.where = f"{path}, row {number} ({cells['slide'] or 'no slide id'})"
        named = sum(bool(name) for name in table.header)
        if any(value and not name for name, value in zip_longest(table.header, values, fillvalue="")):
            mistakes.add(f"{len(values)} cells, but {named} columns", "Check the separators, and name each column")
        row = _parse(cells, mistakes)
        if row.slide and row.slide in rows:
            mistakes.add("the slide id occurs twice", "Give each slide its own id")
        other = patients.setdefault(row.patient, row) if row.patient else row
        if other.split and row.split and other.split != row.split:
            mistakes.add(
                f"patient {row.patient} is in the splits {other.split} (slide {other.slide}) and {row.split}",
                "Keep all slides of a patient in one split",
            )
        if check_files and row.slide not in exclude:
            _check_files(row, mistakes)
        rows[row.slide] = row
    if not rows and not mistakes.found:
        mistakes.add("the sheet has no slides", "Add a row for each slide; config/README.md describes the columns")
    if mistakes.found:
        raise SheetError.of(mistakes.found)
    sheet = Sheet(rows)
    sheet.warnings = [*table.warnings, *_misspelt_columns(path, table.header)]
    for slide in sorted(set(exclude)):
        if slide not in sheet:
            near = difflib.get_close_matches(slide, sheet, n=1)
            hint = f"did you mean {near[0]}?" if near else "it is not in the sheet"
            raise ConfigError(f"cohort.exclude: no slide {slide} in {path} ({hint})")
        sheet.excluded[slide] = sheet.pop(slide)
    return sheet


class _Mistakes:
    """The mistakes of a sheet; `where` begins each of their texts."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[SheetError] = []

    def add(self, problem: str, remedy: str) -> None:
        self.found.append(SheetError(f"{self.where}: {problem}", remedy=remedy))


def _check_header(header: list[str], mistakes: _Mistakes) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        near = [close for name in missing for close in difflib.get_close_matches(name, set(header) - {*COLUMNS}, n=1)]
        hint = f" (is it {', '.join(near)}?)" if near else ""
        mistakes.add(
            f"no column {', '.join(missing)}{hint}",
            "The first row names the columns, with tabs, commas or semicolons between them; of a workbook the first "
            "worksheet is read",
        )
    for name, count in Counter(filter(None, header)).items():
        if count > 1:
            mistakes.add(f"the column {name} occurs twice", "Delete or rename one of them")


def _misspelt_columns(path: Path, header: list[str]) -> Iterator[str]:
    """A warning for each unknown column, which is ignored, with nearly the name of a column that the sheet lacks."""
    lacking = [name for name in COLUMNS if name not in header]
    for name in header:
        near = [] if name in COLUMNS else difflib.get_close_matches(name, lacking, n=1, cutoff=_SIMILAR)
        if near:
            yield f"{path}: the column {name} is ignored. Rename it if it is meant to be {near[0]}"


def _parse(cells: dict[str, str], mistakes: _Mistakes) -> SlideRow:
    """The row of some cells; what is wrong is added to `mistakes` and left empty in the row."""

    def one_of(column: str, allowed: tuple[str, ...]) -> str | None:
        value = cells.get(column, "").lower()
        if value and value not in allowed:
            mistakes.add(f"{column} {cells[column]!r} is not one of {', '.join(allowed)}", f"Correct the {column}")
            return None
        return value or None

    def number(column: str, low: float, high: float) -> float | None:
        value = cells.get(column)
        if not value:
            return None
        try:
            # Spreadsheets of many countries write a decimal comma.
            parsed = float(value.replace(",", "."))
        except ValueError:
            parsed = float("nan")
        if low <= parsed <= high:
            return parsed
        mistakes.add(f"{column} {value!r} is not a number from {low:g} to {high:g}", f"Correct the {column}")
        return None

    row = SlideRow(
        slide=cells["slide"],
        path=cells["path"],
        split=one_of("split", SPLITS) or "",
        label=one_of("label", CLASSES),
        annotation=cells.get("annotation") or None,
        annotation_origin=cast("Origin | None", one_of("annotation_origin", get_args(Origin))),
        exhaustive=one_of("exhaustive", ("yes", "no")) != "no",
        patient=cells.get("patient") or None,
        centre=cells.get("centre") or None,
        mpp=number("mpp", *MPP_RANGE),
        tissue_method=cast("TissueMethod | None", one_of("tissue_method", get_args(TissueMethod))),
        tissue_threshold=number("tissue_threshold", 0, 255),
        excluded_from=tuple(cells.get("excluded_from", "").split()),
    )
    if row.annotation and not cells.get("label"):
        row = replace(row, label="tumor")
    _check_row(row, cells, mistakes)
    return row


def _check_row(row: SlideRow, cells: dict[str, str], mistakes: _Mistakes) -> None:
    if not re.fullmatch(NAME_PATTERN, row.slide):
        mistakes.add(
            f"{row.slide!r} cannot be a slide id",
            "Use letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    if not row.path:
        mistakes.add("the path is empty", "Give the slide file")
    for path in filter(is_remote, (row.path, row.annotation or "")):
        if "{" in path or "}" in path:
            # Snakemake takes braces in URLs for wildcards.
            mistakes.add(f"{path}: braces in the name of an object in a bucket", "Rename the object, or download it")
    if not cells["split"]:
        mistakes.add("the split is empty", f"Use one of {', '.join(SPLITS)}")
    if row.split == "train" and not cells.get("label") and row.annotation is None:
        mistakes.add("a training slide without label and annotation", "Give its label, normal or tumor")
    if row.split == "train" and row.label == "tumor" and row.annotation is None:
        mistakes.add(
            "a tumour training slide without annotation",
            "Give the annotation file, or move the slide to another split",
        )


def is_remote(path: str) -> bool:
    """Whether the path of a slide or annotation is in a bucket, from where Snakemake fetches it."""
    return path.startswith(REMOTE)


def _check_files(row: SlideRow, mistakes: _Mistakes) -> None:
    for column, value in (("path", row.path), ("annotation", row.annotation)):
        if value and not is_remote(value) and not Path(value).is_file():
            problem = "is a folder, not a file" if Path(value).is_dir() else "does not exist"
            mistakes.add(
                f"{column} {value} {problem}",
                f"Correct the {column}; it is relative to the folder where the workflow is started",
            )
