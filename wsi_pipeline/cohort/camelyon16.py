"""The slide sheet of Camelyon16 (Ehteshami Bejnordi et al., JAMA 318, 2017; https://camelyon16.grand-challenge.org).

399 slides, one per patient: 270 for training and 129 for test. Facts about single files (not exhaustively annotated,
renamed, withdrawn) come from the data set's README.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from wsi_pipeline.cohort.sheet import is_remote
from wsi_pipeline.config import CLASSES
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.io.atomic import write_text

COLUMNS = ("slide", "path", "split", "label", "annotation", "exhaustive", "patient", "centre", "excluded_from")
_REFERENCE_COLUMNS = ("image", "type", "center")
_CENTRES = {"0": "radboud", "1": "utrecht"}
_NAME = re.compile(r"(normal|tumor|test)_\d{3}")

# Slides with tumour that is not annotated.
NOT_EXHAUSTIVE = frozenset(
    [f"tumor_{n:03d}" for n in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)]
    + ["test_114"]
)
# Subsets of the 129 test slides that papers evaluate: lesion-128 omits the slide that is not exhaustively annotated.
# (The 130 slides of the MathWorks example include the duplicate test_049, which is no longer distributed.)
_EXCLUDED_FROM = {"test_114": "lesion-128"}
# normal_086 holds tumour and became tumor_111; test_049 is a duplicate.
WITHDRAWN = frozenset({"normal_086", "test_049"})


def write_sheet(reference: Path, folder: str, output: Path, validation_share: float) -> int:
    """Write the sheet; returns the number of slides.

    `reference` is the data set's table of labels (image, type, center). `folder` is a folder or s3:// prefix with
    images/ and annotations/. A fraction `validation_share` of the training slides of each class and centre is used
    for validation, selected by a hash of their names, so that the selection is stable. Raises `ConfigError`.
    """
    rows = sorted(_rows(reference, folder))
    validation = set(_validation_slides(rows, validation_share))
    text = io.StringIO()
    text.write("# Camelyon16, written by wsi-pipeline camelyon16-sheet\n")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for slide, path, split, *others in rows:
        writer.writerow((slide, path, "validation" if slide in validation else split, *others))
    write_text(output, text.getvalue())
    return len(rows)


def _rows(reference: Path, folder: str) -> Iterator[tuple[str, ...]]:
    try:
        with reference.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{reference}: the table of labels cannot be read ({error})", remedy="It comes with the data set"
        ) from error
    missing = [name for name in _REFERENCE_COLUMNS if not table or name not in table[0]]
    if missing:
        raise ConfigError(f"{reference}: no column {', '.join(missing)}", remedy="Take the data set's table of labels")
    for number, cells in enumerate(table, start=2):
        image, label, centre = (cells[name] or "" for name in _REFERENCE_COLUMNS)
        slide = image.removesuffix(".tif")
        if not _NAME.fullmatch(slide) or label not in CLASSES or centre not in _CENTRES:
            raise ConfigError(
                f"{reference}, row {number}: {image!r}, {label!r}, {centre!r} are not a slide of Camelyon16 with its "
                "label and its centre (0 or 1)"
            )
        if slide in WITHDRAWN:
            continue
        annotation = _join(folder, f"annotations/{slide}.xml") if label == "tumor" else ""
        exhaustive = "no" if slide in NOT_EXHAUSTIVE else "yes"
        split = "test" if slide.startswith("test_") else "train"
        # One slide per patient, and the data set has no patient ids: the slide id serves as one.
        path = _join(folder, f"images/{slide}.tif")
        excluded = _EXCLUDED_FROM.get(slide, "")
        yield slide, path, split, label, annotation, exhaustive, slide, _CENTRES[centre], excluded


def _validation_slides(rows: Iterable[tuple[str, ...]], share: float) -> Iterator[str]:
    strata: dict[tuple[str, str], list[str]] = {}
    for slide, _, split, label, *_, centre, _ in rows:
        if split == "train":
            strata.setdefault((label, centre), []).append(slide)
    for slides in strata.values():
        slides.sort(key=lambda slide: hashlib.sha256(slide.encode()).digest())
        yield from slides[: round(share * len(slides))]


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder) / name)
