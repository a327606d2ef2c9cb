"""The slide sheet: a TSV file with a row for each slide.

Required columns: `slide, path, split`. Optional: `label, annotation, exhaustive, patient, centre,
mpp, tissue_method, tissue_threshold, excluded_from`. An empty cell and an omitted column mean "unknown".
Lines that start with `#` are comments. Paths are relative to the working directory, or s3:// URLs.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.config import CLASSES, NAME_PATTERN, EvaluationOptions, TissueRun
from wsi_pipeline.config.base import MPP_RANGE
from wsi_pipeline.config.loading import validate
from wsi_pipeline.errors import ConfigError, SheetError
from wsi_pipeline.io.digests import digest_json
from wsi_pipeline.io.fingerprints import EMPTY, UNREADABLE, Fingerprints

REMOTE = "s3://"
SPLITS = ("train", "validation", "test")
REQUIRED = ("slide", "path", "split")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One slide of the sheet. `label` is None where neither the column label nor an annotation determines it."""

    slide: str
    path: str
    split: str
    label: str | None = None
    annotation: str | None = None
    exhaustive: bool = True
    patient: str | None = None
    centre: str | None = None
    mpp: float | None = None
    tissue_method: str | None = None
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

    Both are sorted by slide id, so that no result depends on the order of the file's lines.
    """

    def __init__(self, rows: Mapping[str, SlideRow] | None = None) -> None:
        super().__init__(sorted((rows or {}).items()))
        self.excluded = dict[str, SlideRow]()

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

    def check_splits(self, fingerprints: Fingerprints) -> None:
        """Raise `SheetError` where a slide occurs in two splits, as one file or as copies."""
        fingerprints.read(row.path for row in self.values() if not is_remote(row.path))
        found: dict[str, SlideRow] = {}
        for row in self.values():
            content = row.path if is_remote(row.path) else fingerprints[row.path]
            if content in (EMPTY, UNREADABLE):
                continue
            first = found.setdefault(content, row)
            if first.split != row.split:
                raise SheetError(
                    f"slides {first.slide} ({first.split}: {first.path}) and {row.slide} ({row.split}: {row.path}) are "
                    "the same file",
                    remedy="Keep each slide in one split",
                )

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
    """Read and check a sheet. Raises `SheetError`, naming the row of the first mistake.

    Slides in `exclude` are checked like the others and then moved to `excluded`. With `check_files` each slide and
    annotation must exist. Raises `ConfigError` for an unknown slide in `exclude`.
    """
    rows: dict[str, SlideRow] = {}
    patients: dict[str, SlideRow] = {}
    for number, cells in _rows(path):
        where = f"{path}, row {number} ({cells['slide'] or 'no slide id'})"
        row = _parse(cells, where)
        if row.slide in rows:
            raise SheetError(f"{where}: the slide id occurs twice", remedy="Give each slide its own id")
        other = patients.setdefault(row.patient, row) if row.patient else row
        if other.split != row.split:
            raise SheetError(
                f"{where}: patient {row.patient} is in the splits {other.split} (slide {other.slide}) and {row.split}",
                remedy="Keep all slides of a patient in one split",
            )
        if check_files:
            _check_files(row, where)
        rows[row.slide] = row
    if not rows:
        raise SheetError(
            f"{path}: the sheet has no slides",
            remedy="Add a row for each slide; config/README.md describes the columns",
        )
    sheet = Sheet(rows)
    for slide in sorted(set(exclude)):
        if slide not in sheet:
            near = difflib.get_close_matches(slide, sheet, n=1)
            hint = f"did you mean {near[0]}?" if near else "it is not in the sheet"
            raise ConfigError(f"cohort.exclude: no slide {slide} in {path} ({hint})")
        sheet.excluded[slide] = sheet.pop(slide)
    return sheet


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SheetError(
            f"{path}: the slide sheet cannot be read ({error})", remedy="Set cohort.slides in the config"
        ) from error
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not lines:
        raise SheetError(f"{path}: the sheet is empty", remedy=f"It starts with the columns {', '.join(REQUIRED)}")
    reader = csv.reader((line for _, line in lines), delimiter="\t")
    header = [name.strip() for name in next(reader)]
    _check_header(path, header)
    for (number, _), values in zip(lines[1:], reader, strict=True):
        if len(values) > len(header):
            raise SheetError(f"{path}, row {number}: {len(values)} cells, but {len(header)} columns")
        cells = dict.fromkeys(COLUMNS, "")
        cells.update({name: value.strip() for name, value in zip(header, values, strict=False)})
        yield number, cells


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise SheetError(
            f"{path}: no column {', '.join(missing)}",
            remedy="Columns are separated by tabs and named in the first row",
        )
    for name in header:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COLUMNS)}"
            raise SheetError(f"{path}: unknown column {name!r} ({hint})")
    if len(set(header)) != len(header):
        raise SheetError(f"{path}: a column occurs twice")


def _parse(cells: dict[str, str], where: str) -> SlideRow:
    def one_of(column: str, allowed: tuple[str, ...]) -> str | None:
        value = cells[column]
        if value and value not in allowed:
            raise SheetError(f"{where}: {column} {value!r} is not one of {', '.join(allowed)}")
        return value or None

    def number(column: str, low: float, high: float) -> float | None:
        value = cells[column]
        if not value:
            return None
        try:
            parsed = float(value)
        except ValueError:
            parsed = float("nan")
        if not low <= parsed <= high:
            raise SheetError(f"{where}: {column} {value!r} is not a number from {low:g} to {high:g}")
        return parsed

    if not re.fullmatch(NAME_PATTERN, cells["slide"]):
        raise SheetError(
            f"{where}: {cells['slide']!r} cannot be a slide id",
            remedy="Use letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    if not cells["path"]:
        raise SheetError(f"{where}: the path is empty")
    split = one_of("split", SPLITS)
    if split is None:
        raise SheetError(f"{where}: the split is empty", remedy=f"Use one of {', '.join(SPLITS)}")
    label = one_of("label", CLASSES)
    annotation = cells["annotation"] or None
    if label is None and annotation:
        label = "tumor"
    if split == "train" and label is None:
        raise SheetError(
            f"{where}: a training slide without label and annotation", remedy="Give its label, normal or tumor"
        )
    if split == "train" and label == "tumor" and annotation is None:
        raise SheetError(
            f"{where}: a tumour training slide without annotation",
            remedy="Give the annotation file, or move the slide to another split",
        )
    return SlideRow(
        slide=cells["slide"],
        path=cells["path"],
        split=split,
        label=label,
        annotation=annotation,
        exhaustive=one_of("exhaustive", ("yes", "no")) != "no",
        patient=cells["patient"] or None,
        centre=cells["centre"] or None,
        mpp=number("mpp", *MPP_RANGE),
        tissue_method=one_of("tissue_method", ("otsu_saturation", "otsu_gray", "gray_threshold")),
        tissue_threshold=number("tissue_threshold", 0, 255),
        excluded_from=tuple(cells["excluded_from"].split()),
    )


def is_remote(path: str) -> bool:
    """Whether the path of a slide or annotation is in a bucket, from where Snakemake fetches it."""
    return path.startswith(REMOTE)


def _check_files(row: SlideRow, where: str) -> None:
    for column, value in (("path", row.path), ("annotation", row.annotation)):
        if value is not None and not is_remote(value) and not Path(value).is_file():
            problem = "is a folder, not a file" if Path(value).is_dir() else "does not exist"
            raise SheetError(
                f"{where}: {column} {value} {problem}",
                remedy=f"Correct the {column}; it is relative to the folder where the workflow is started",
            )
