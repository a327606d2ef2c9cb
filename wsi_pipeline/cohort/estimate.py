"""Estimate the cost of a cohort, and find problems with it, before a run.

Slides are opened and a few of their pixels are read; nothing is written. Disk space and times are estimates: for copied
levels from the sizes of their tiles, for other levels from a few chunks that are read and encoded. The number of
patches comes from a tissue mask of the coarsest level.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pipeline.cohort.sheet import Sheet, SlideRow, is_remote
from wsi_pipeline.config import Config, TissueRun
from wsi_pipeline.config.loading import check_weights
from wsi_pipeline.errors import AnnotationError, PipelineError, SlideError
from wsi_pipeline.geometry import Box, Grid, Size
from wsi_pipeline.io.fingerprints import Fingerprints
from wsi_pipeline.io.layout import keeps_model
from wsi_pipeline.masks.annotation_position import (
    canvas_of,
    check_position,
    overview_level,
    position_tissue,
    read_overview,
)
from wsi_pipeline.masks.annotations import read_annotation
from wsi_pipeline.masks.label_images import grid_fractions
from wsi_pipeline.masks.tissue_detection import segment_tissue
from wsi_pipeline.masks.truth import check_label
from wsi_pipeline.progress_bar import track
from wsi_pipeline.pyramid.codecs import chunk_codec
from wsi_pipeline.pyramid.level_plan import level_scales, level_sizes, passthrough_page
from wsi_pipeline.pyramid.passthrough import should_merge_tables
from wsi_pipeline.pyramid.pyramid import patch_spec
from wsi_pipeline.pyramid.shards import ChunkGrid
from wsi_pipeline.pyramid.writing import pad_to_box
from wsi_pipeline.seeds import generator
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.slides.tiff_tiles import TiledTiff

# Rate of two cores of a current server, digests included (docs/benchmarks.md).
COPIED_BYTES_PER_SECOND = 400e6
_SAMPLE_CHUNKS = 4
# A level with more pixels is not read for a mask, as that would take too long for an estimate.
_MAX_MASK_PIXELS = 64_000_000
_ASPECT_TOLERANCE = 0.02
_SMALL_PX = 64


@dataclass(frozen=True, slots=True)
class SlideEstimate:
    """Estimate for one slide; `tissue_share` and `patches` are None where tissue is not estimated."""

    slide: str
    split: str
    vendor: str
    width: int
    height: int
    mpp: float
    copied_levels: int
    read_levels: int
    added_levels: int
    source_bytes: int
    store_bytes: int
    files: int
    convert_seconds: float
    tissue_share: float | None
    patches: int | None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem as one line with a remedy; `error` is False for a warning, which does not stop a run.

    `slide` is None for a problem of the sheet as a whole.
    """

    slide: str | None
    text: str
    error: bool


@dataclass(frozen=True, slots=True)
class CohortEstimate:
    """Estimates of all readable slides, all problems, the splits to be predicted, and the config's `pyramid.keep`."""

    slides: list[SlideEstimate]
    problems: list[Problem]
    predicted: tuple[str, ...]
    keeps_pyramids: bool

    def as_json(self) -> dict[str, Any]:
        """The estimates and problems as JSON values."""
        return {"slides": [asdict(s) for s in self.slides], "problems": [asdict(p) for p in self.problems]}


def estimate_cohort(sheet: Sheet, config: Config, threads: int = 1) -> CohortEstimate:
    """Estimate the cost of each slide of a sheet, with `threads` slides at a time.

    The checks are those of the workflow: what it refuses is an error here.
    """
    with ThreadPoolExecutor(threads) as pool:
        results = list(track(pool.map(lambda row: _inspect(row, config), sheet.values()), "slides", len(sheet)))
    plans = [plan for plan, _ in results if plan is not None]
    problems = [*_sheet_problems(sheet, config), *(problem for _, found in results for problem in found)]
    return CohortEstimate(plans, problems, ("test", *config.evaluation.extra_predicted_splits), config.pyramid.keep)


def _sheet_problems(sheet: Sheet, config: Config) -> Iterator[Problem]:
    def check_splits() -> None:
        found.extend(sheet.check_splits(Fingerprints.of_results(Path(config.results))))

    found = list(sheet.warnings)
    checks: list[Callable[[], None]] = [check_splits, partial(sheet.check_evaluation, config.evaluation)]
    if not keeps_model(config):
        checks.append(partial(check_weights, config))
    if not (config.training.weights or keeps_model(config)):
        checks.append(sheet.check_training)
    for check in checks:
        try:
            check()
        except PipelineError as error:
            yield from (Problem(None, line, error=True) for line in str(error).splitlines())
    yield from (Problem(None, line, error=False) for line in found)


def _inspect(row: SlideRow, config: Config) -> tuple[SlideEstimate | None, list[Problem]]:
    path, problems = Path(row.path), list[Problem]()
    if is_remote(row.path):
        text = f"slide {row.slide}: {row.path}: not inspected, as it is in a bucket"
        return None, [Problem(row.slide, text, error=False)]
    try:
        source = SourceSlide(row.slide, path, row.mpp)
    except SlideError as error:
        return None, [Problem(row.slide, str(error), error=True)]
    try:
        problems += _level_problems(row, source)
        problems += _annotation_problems(row, source, config)
        return _estimate(row, source, config, problems), problems
    except PipelineError as error:
        return None, [*problems, Problem(row.slide, str(error), error=True)]
    finally:
        source.close()


def _level_problems(row: SlideRow, source: SourceSlide) -> Iterator[Problem]:
    base = source.metadata.levels[0]
    for k, size in enumerate(source.metadata.levels[1:], start=1):
        across, down = base.width / size.width, base.height / size.height
        if min(size.width, size.height) >= _SMALL_PX and abs(across / down - 1) > _ASPECT_TOLERANCE:
            text = source.error(
                f"level {k} is downsampled by {across:.2f} in x but by {down:.2f} in y",
                "View the slide: its levels may not show the same image",
            )
            yield Problem(row.slide, str(text), error=False)


def _annotation_problems(row: SlideRow, source: SourceSlide, config: Config) -> Iterator[Problem]:
    if row.annotation is None or is_remote(row.annotation):
        return
    path, canvas, levels = Path(row.annotation), canvas_of(source), source.metadata.levels
    try:
        annotation = read_annotation(row.slide, path, config.truth, canvas, row.annotation_origin)
        size = levels[overview_level(levels)]
        if size.width * size.height <= _MAX_MASK_PIXELS:
            overview = read_overview(source)
            tissue = position_tissue(row.tissue_method, row.tissue_threshold)
            check_position(row.slide, path, annotation, canvas, overview, config.truth.min_on_tissue, tissue)
        check_label(row.slide, path, row.label, annotation.regions)
    except AnnotationError as error:
        yield Problem(row.slide, str(error), error=True)


def _estimate(row: SlideRow, source: SourceSlide, config: Config, problems: list[Problem]) -> SlideEstimate:
    metadata = source.metadata
    options = config.pyramid
    sizes = level_sizes(metadata)
    chunk = Size(options.chunk_px, options.chunk_px)
    stored = 0.0
    seconds = 0.0
    files = 1
    copied = 0
    # Downsampled levels are encoded like those read from the slide, so the same measurement serves for both.
    per_chunk: tuple[float, float] | None = None
    with TiledTiff(source.path, source.pages) as tiff:
        for level, size in enumerate(sizes):
            page = passthrough_page(source, tiff, level, options)
            grid = ChunkGrid.of(size, chunk if page is None else page.tile, options.shard_px)
            files += 1 + len(grid.shards())
            if page is not None:
                tables = len(page.tables or b"") if should_merge_tables(page) else 0
                size_bytes = page.nbytes + tables * int(np.count_nonzero(page.counts))
                copied += 1
                stored += size_bytes
                seconds += size_bytes / COPIED_BYTES_PER_SECOND
            else:
                if per_chunk is None:
                    per_chunk = _measure_chunks(source, min(level, len(metadata.levels) - 1), config)
                # Others are neither read nor written.
                count = len(grid.chunks_in(source.scanned(size)))
                stored += count * per_chunk[0]
                seconds += count * per_chunk[1]
            stored += 16 * len(grid.shards()) * grid.shard_columns * grid.shard_rows
    share, patches = _estimate_tissue(row, source, config, problems)
    return SlideEstimate(
        slide=row.slide,
        split=row.split,
        vendor=metadata.vendor,
        width=sizes[0].width,
        height=sizes[0].height,
        mpp=metadata.mpp,
        copied_levels=copied,
        read_levels=len(metadata.levels) - copied,
        added_levels=len(sizes) - len(metadata.levels),
        source_bytes=sum(file.stat().st_size for file in source.files),
        store_bytes=round(stored),
        files=files,
        convert_seconds=round(seconds, 2),
        tissue_share=share,
        patches=patches,
    )


def _measure_chunks(source: SourceSlide, level: int, config: Config) -> tuple[float, float]:
    """Mean bytes and seconds per chunk of a level, from a sample of chunks that are read and encoded."""
    options, size = config.pyramid, source.metadata.levels[level]
    grid = ChunkGrid.of(size, Size(options.chunk_px, options.chunk_px), options.shard_px)
    codec = chunk_codec(options, grid.chunk)
    chunks = grid.chunks_in(source.scanned(size))
    places = generator(0, "plan", source.slide).integers(len(chunks), size=_SAMPLE_CHUNKS)
    written = 0
    started = time.perf_counter()
    for index in places.tolist():
        box = grid.box(*chunks[index])
        written += len(codec.encode(pad_to_box(source.read(box.clipped(size), level), box)))
    return written / _SAMPLE_CHUNKS, (time.perf_counter() - started) / _SAMPLE_CHUNKS


def _estimate_tissue(
    row: SlideRow, source: SourceSlide, config: Config, problems: list[Problem]
) -> tuple[float | None, int | None]:
    """Fraction of the slide that is tissue, and number of patches of its heatmap, from a mask of the coarsest level."""
    metadata = source.metadata
    scales = level_scales(metadata, len(metadata.levels))
    mpps = [(y + x) / 2 for y, x in scales]
    spec = patch_spec(mpps, config.patches.size_px, config.patches.mpp, where=f"slide {row.slide}: {source.path}")
    size = metadata.levels[-1]
    if size.width * size.height > _MAX_MASK_PIXELS:
        return None, None
    options = row.tissue_options(TissueRun.of(config)).model_copy(update={"mpp": mpps[-1]})
    picture = source.read(Box(0, 0, size.width, size.height), len(metadata.levels) - 1)
    mask, _ = segment_tissue(picture, options, has_canvas=metadata.bounds is not None)
    if not mask.any():
        text = source.error(
            f"no tissue found by {options.method} at {mpps[-1]:.3g} um per pixel",
            "View the slide; set the sheet's columns tissue_threshold or tissue_method for it",
        )
        problems.append(Problem(row.slide, str(text), error=False))
    stride = spec.level0_px if config.heatmap.stride_um is None else config.heatmap.stride_um / mpps[0]
    grid = Grid.over(metadata.levels[0], spec.level0_px, stride)
    shares = grid_fractions(mask, mpps[-1], grid, mpps[0])
    return round(float(mask.mean()), 4), int((shares > config.heatmap.min_tissue).sum())


def format_estimate(plan: CohortEstimate, rate: float) -> str:
    """The estimate as a table for a terminal; `rate` is the predicted patches per second."""
    header = ("slide", "split", "format", "pixels", "um/px", "levels", "disk", "files", "convert", "patches")
    rows = [header, *(_cells(slide) for slide in plan.slides)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_totals(plan, rate), *_problem_lines(plan.problems)])


def _cells(slide: SlideEstimate) -> tuple[str, ...]:
    parts = ((slide.copied_levels, "copied"), (slide.read_levels, "read"), (slide.added_levels, "added"))
    return (
        slide.slide,
        slide.split,
        slide.vendor,
        f"{slide.width} x {slide.height}",
        f"{slide.mpp:.4g}",
        ", ".join(f"{count} {name}" for count, name in parts if count),
        _gigabytes(slide.store_bytes),
        str(slide.files),
        _duration(slide.convert_seconds),
        "?" if slide.patches is None else str(slide.patches),
    )


def _totals(plan: CohortEstimate, rate: float) -> Iterator[str]:
    slides = plan.slides
    if not slides:
        return
    formats = Counter(slide.vendor for slide in slides)
    copied = sum(not slide.read_levels for slide in slides)
    yield f"{len(slides)} slides: {', '.join(f'{count} {vendor}' for vendor, count in sorted(formats.items()))}"
    yield f"{copied} are copied tile by tile, {len(slides) - copied} are re-encoded, in whole or in part"
    sources, stores = sum(s.source_bytes for s in slides), sum(s.store_bytes for s in slides)
    kept = "" if plan.keeps_pyramids else ", none of them kept"
    count = sum(s.files for s in slides)
    yield f"pyramids: about {_gigabytes(stores)} in {count} files{kept}; slides {_gigabytes(sources)}"
    seconds = sum(slide.convert_seconds for slide in slides)
    yield f"conversion: about {_duration(seconds)} in total, one slide after the other"
    known = [slide.patches for slide in slides if slide.split in plan.predicted and slide.patches is not None]
    if known:
        time_taken = _duration(sum(known) / rate)
        yield f"heatmaps of {len(known)} slides: about {sum(known)} patches, {time_taken} at {rate:g} a second (--rate)"


def _problem_lines(problems: list[Problem]) -> Iterator[str]:
    for kind, error in (("error", True), ("warning", False)):
        found = [problem.text for problem in problems if problem.error == error]
        if found:
            yield ""
        yield from (f"{kind}: {text}" for text in found)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
