"""FROC of detections and ROC of slide scores from any system, computed by the code of the pipeline's own evaluation."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.config import CLASSES, IntervalOptions, LesionLevelOptions
from wsi_pipeline.errors import PredictionError
from wsi_pipeline.evaluation.cohort_metrics import lesion_figures, slide_figures
from wsi_pipeline.evaluation.summary import Figures, format_difference, format_figure
from wsi_pipeline.io.digests import digest_file, digest_names
from wsi_pipeline.metrics.delong import Comparison, Labels, Scores, compare
from wsi_pipeline.metrics.lesions import (
    CAMELYON16_LEVEL,
    CAMELYON16_MPP,
    NO_LESIONS,
    Detection,
    SlideHits,
    find_lesions,
    match_detections,
)

SCHEMA_VERSION = 3
_MASK_SUFFIXES = ("", "_mask", "_evaluation_mask")
_MASK_FILES = (".tif", ".tiff", ".png")
_SCORE_COLUMNS = ("slide", "score", "label")
_MAX_COORDINATE = 2**31
_HEADERS = (["confidence", "x", "y"], ["probability", "x", "y"])


def external_froc(
    detections: Path,
    masks: Path,
    *,
    mpp: float,
    level: int,
    exclude: Collection[str],
    options: LesionLevelOptions,
    interval: IntervalOptions,
) -> Figures:
    """FROC of a folder of detections (a CSV `confidence,x,y` a slide, level-0 pixels) by Camelyon16's rules.

    `masks` has a TIFF or PNG a tumour slide, not 0 where tumour is, at `level` of slides of `mpp` um per
    pixel at level 0; slides without one are free of tumour. Raises `PredictionError`.
    """
    _check_scale(options, mpp, level)
    files = _detection_files(detections)
    if unknown := set(exclude) - set(files):
        raise PredictionError(f"{detections}: no CSV of the excluded slide {min(unknown)}")
    of_slide = _masks_of(masks, files)
    slides = [slide for slide in files if slide not in exclude]
    hits: list[SlideHits] = []
    table: list[Figures] = []
    for slide in slides:
        found = read_detections(files[slide])
        lesions = NO_LESIONS
        if slide in of_slide:
            mask = read_mask(of_slide[slide], level)
            _check_inside(files[slide], found, mask.shape, 2**level)
            lesions = find_lesions(mask, mpp * 2**level, merge_um=options.merge_um, itc_um=options.itc_um)
        hits.append(match_detections(found, lesions, 2**level))
        table.append(
            {
                "slide": slide,
                "detections": len(found),
                "lesions": len(hits[-1].lesions),
                "lesions_hit": len(hits[-1].hits),
                "false_positives": len(hits[-1].false_positives),
                "isolated_tumor_cells": hits[-1].isolated,
            }
        )
    used = {slide: digest_file(files[slide]) for slide in slides}
    used |= {f"{slide} mask": digest_file(of_slide[slide]) for slide in slides if slide in of_slide}
    return {
        "schema_version": SCHEMA_VERSION,
        **lesion_figures(hits, interval, missed=0.0),
        "protocol": options.protocol,
        "excluded": sorted(exclude),
        "mpp": mpp,
        "level": level,
        "merge_um": options.merge_um,
        "itc_um": options.itc_um,
        "slides": table,
        "inputs_sha256": digest_names(used),
    }


def _detection_files(folder: Path) -> dict[str, Path]:
    """The CSV of each slide. Slides that differ in case only are refused: their masks could not be told apart."""
    paths = [path for path in sorted(_folder(folder).iterdir()) if path.suffix.lower() == ".csv"]
    if not paths:
        raise PredictionError(f"{folder}: no CSV files", remedy="Give the folder with a CSV for each slide")
    first = dict[str, Path]()
    for path in paths:
        if (other := first.setdefault(path.stem.lower(), path)) is not path:
            raise PredictionError(f"{path}: a second CSV of {path.stem}, beside {other.name}", remedy="Rename one")
    return {path.stem: path for path in paths}


def read_detections(path: Path) -> list[Detection]:
    """Rows `confidence,x,y`, with or without a header. `PredictionError` names the row."""
    found = list[Detection]()
    for number, cells in _csv_rows(path):
        if number == 1 and [cell.lower() for cell in cells] in _HEADERS:
            continue
        try:
            confidence, x, y = map(_number, cells)
        except ValueError:
            confidence = x = y = math.nan
        if not math.isfinite(confidence) or not max(abs(x), abs(y)) < _MAX_COORDINATE:
            raise PredictionError(
                f"{path}, row {number}: {','.join(cells)!r} is not confidence,x,y",
                remedy="Write a number for each, in level-0 pixels",
            )
        if confidence < 0:
            # A missed lesion counts as 0: nothing may be less certain than that.
            raise PredictionError(f"{path}, row {number}: the confidence {confidence:g} is below 0")
        found.append(Detection(confidence, x, y))
    return found


def read_mask(path: Path, level: int) -> NDArray[np.bool_]:
    """Where a mask, (h, w) of one channel, is not 0; of a pyramid its `level`."""
    try:
        if path.suffix.lower() == ".png":
            pixels = np.asarray(imagecodecs.png_decode(path.read_bytes()))
        else:
            with tifffile.TiffFile(path) as tiff:
                levels = tiff.series[0].levels
                if 1 < len(levels) <= level:
                    raise ValueError(f"it has {len(levels)} levels, and --level {level} is none of them")
                pixels = np.asarray(levels[level if len(levels) > level else 0].asarray())
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("values that are not finite")
        if pixels.ndim == 3 and len({pixels[..., k].tobytes() for k in range(pixels.shape[2])}) == 1:
            pixels = pixels[..., 0]
        if pixels.ndim != 2:
            raise ValueError(f"a picture of shape {pixels.shape}")
    except Exception as error:
        raise PredictionError(
            f"{path}: not a mask ({error})", remedy="Give a TIFF or PNG of one channel, 0 where no tumour is"
        ) from error
    mask: NDArray[np.bool_] = pixels != 0
    return mask


def _check_scale(options: LesionLevelOptions, mpp: float, level: int) -> None:
    if options.protocol == "camelyon16" and (mpp, level) != (CAMELYON16_MPP, CAMELYON16_LEVEL):
        raise PredictionError(
            f"the protocol camelyon16 has {CAMELYON16_MPP} um per pixel and masks of level {CAMELYON16_LEVEL}, "
            f"not {mpp:g} and {level}",
            remedy="Leave out --mpp and --level, or --protocol",
        )


def _masks_of(folder: Path, slides: Mapping[str, Path]) -> dict[str, Path]:
    """The mask of each slide that has one: SLIDE.tif, SLIDE_mask.tif or SLIDE_evaluation_mask.tif, or .png."""
    names = {f"{slide.lower()}{suffix}": slide for slide in slides for suffix in _MASK_SUFFIXES}
    found: dict[str, Path] = {}
    for path in sorted(_folder(folder).iterdir()):
        if path.suffix.lower() not in _MASK_FILES:
            continue
        slide = names.get(path.stem.lower())
        if slide is None:
            raise PredictionError(
                f"{path}: a mask of no slide that has a CSV",
                remedy="Write a CSV for each slide, empty without detections",
            )
        if slide in found:
            raise PredictionError(f"{path}: a second mask of {slide}, beside {found[slide].name}")
        found[slide] = path
    return found


def _check_inside(path: Path, found: Sequence[Detection], shape: tuple[int, ...], mask_px: int) -> None:
    for number, d in enumerate(found, start=1):
        if not (0 <= d.x < shape[1] * mask_px and 0 <= d.y < shape[0] * mask_px):
            raise PredictionError(
                f"{path}: detection {number} at {d.x:g}, {d.y:g} lies outside the slide of "
                f"{shape[1] * mask_px} x {shape[0] * mask_px} px",
                remedy="Check that x and y are level-0 pixels, and --level",
            )


def external_roc(path: Path, other: Path | None, *, interval: IntervalOptions, seed: int, permutations: int) -> Figures:
    """ROC AUC of a table `slide,score,label`, and its comparison with another on the same slides."""
    scores, is_tumor, slides = _scores(path)
    figures = {"schema_version": SCHEMA_VERSION, **slide_figures(scores, is_tumor, interval)}
    figures["inputs_sha256"] = digest_file(path)
    if other is None:
        return figures
    second, labels, others = _scores(other)
    if slides.keys() != others.keys():
        only = min(slides.keys() ^ others.keys())
        where = path if only in slides else other
        raise PredictionError(f"{only} is only in {where}", remedy="Give both tables the same slides")
    order = np.fromiter((others[slide] for slide in slides), np.intp, len(slides))
    second, labels = second[order], labels[order]
    if not np.array_equal(is_tumor, labels):
        slide = next(slide for slide, row in slides.items() if is_tumor[row] != labels[row])
        raise PredictionError(f"{slide} has another label in {other} than in {path}")
    found = compare(scores, second, is_tumor, level=interval.level, permutations=permutations, seed=seed)
    compared = dict.fromkeys(field.name for field in fields(Comparison)) if found is None else asdict(found)
    against = slide_figures(second, labels, interval)
    if found is None and figures["auc"] is not None:
        compared |= {
            "difference": figures["auc"] - against["auc"],
            "difference_interval_reason": figures["auc_interval_reason"],
        }
    figures["against"] = {
        **against,
        "inputs_sha256": digest_file(other),
        **compared,
        "permutations": permutations,
        "seed": seed,
    }
    return figures


def _scores(path: Path) -> tuple[Scores, Labels, dict[str, int]]:
    """Scores and labels (slides,) of a table, and the place of each slide in them."""
    rows = _csv_rows(path)
    _, header = next(rows, (0, []))
    if sorted(header) != sorted(_SCORE_COLUMNS):
        raise PredictionError(
            f"{path}: columns {', '.join(header) or 'none'}, not {', '.join(_SCORE_COLUMNS)}",
            remedy="Give a row a slide, the label normal or tumor (or 0 and 1)",
        )
    place = [header.index(name) for name in _SCORE_COLUMNS]
    kinds = {"0": 0, "1": 1, **{name: k for k, name in enumerate(CLASSES)}}
    slides: dict[str, int] = {}
    # Arrays, as lists of a million rows take ten times their memory.
    values, labels = array("d"), array("b")
    for number, cells in rows:
        slide, score, label = (cells[k] for k in place)
        kind = kinds.get(label)
        try:
            value = _number(score)
        except ValueError:
            value = math.nan
        if kind is None or not math.isfinite(value):
            raise PredictionError(f"{path}, row {number}: {score!r} and {label!r} are no score and label")
        if slide in slides:
            raise PredictionError(f"{path}, row {number}: {slide} occurs twice")
        slides[slide] = len(slides)
        values.append(value)
        labels.append(kind)
    if not slides:
        raise PredictionError(f"{path}: no slides")
    return np.array(values, np.float64), np.array(labels, bool), slides


def _number(cell: str) -> float:
    """A number as programs write it; Python's own underscores are a mistake."""
    return math.nan if "_" in cell else float(cell)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each row that is not empty; all rows have as many cells as the first."""
    columns = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, cells in enumerate(csv.reader(file), start=1):
                columns = columns or len(cells)
                if cells and len(cells) != columns:
                    raise PredictionError(f"{path}, row {number}: {len(cells)} cells, the first row has {columns}")
                if cells:
                    yield number, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PredictionError(f"{path}: cannot be read ({error})") from error


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise PredictionError(f"{path}: no such folder")
    return path


def froc_text(figures: Figures) -> str:
    """A few lines for a terminal."""
    slides, lesions, isolated = (figures[f"n_{what}"] for what in ("slides", "lesions", "isolated_tumor_cells"))
    lines = [
        f"FROC score {format_figure(figures, 'froc')} (interpolated), "
        f"{format_figure(figures, 'froc_step_rule')} (step rule)",
        f"over all thresholds {format_figure(figures['all_thresholds'], 'froc')} (interpolated), "
        f"{format_figure(figures['all_thresholds'], 'froc_step_rule')} (step rule)",
        f"{lesions} lesions on {slides} slides, {isolated} with isolated tumour cells left out",
    ]
    if figures["froc"] is not None:
        rates = zip(figures["false_positives_per_slide"], figures["sensitivity"], strict=True)
        lines.append("sensitivity at false positives per slide: " + ", ".join(f"{at:g}: {s:.4f}" for at, s in rates))
    if figures["excluded"]:
        lines.append(f"left out: {', '.join(figures['excluded'])}")
    return "\n".join(lines)


def roc_text(figures: Figures) -> str:
    """A few lines for a terminal."""

    def line(one: Figures) -> str:
        return f"AUC {format_figure(one, 'auc')}; {one['n_tumor']} tumour and {one['n_normal']} normal slides"

    lines = [line(figures)]
    if "against" in figures:
        other = figures["against"]
        lines.append(f"against {line(other)}")
        if other["difference"] is not None:
            delong, permutation = (
                "not computed" if other[p] is None else f"{other[p]:.4g}" for p in ("p_delong", "p_permutation")
            )
            lines.append(f"difference {format_difference(other)}; p {delong} (DeLong), {permutation} (permutation)")
    return "\n".join(lines)
