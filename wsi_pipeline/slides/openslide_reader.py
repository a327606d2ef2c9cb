"""Source slides, read through OpenSlide, or page by page where OpenSlide does not read a TIFF file as it is."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.config.base import MPP_RANGE, is_plausible_mpp
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.io.slide_files import slide_files
from wsi_pipeline.slides.level_pairing import page_of_level
from wsi_pipeline.slides.other_files import is_vsi, other_format
from wsi_pipeline.slides.page_reader import PageReader
from wsi_pipeline.slides.tiff_levels import slide_levels
from wsi_pipeline.slides.tiff_pages import Page, PageError, is_tiff, read_pages

_READ_ERRORS = (openslide.OpenSlideError, OSError)

_WHITE = 255
# Above any scanner's output: a larger size means a damaged file, or one built to fill disks.
_MAX_PIXELS = 10**12
# Upper bound for a TIFF; blank JPEG tiles have about 150 pixels per byte.
_MAX_PIXELS_PER_BYTE = 20_000
# OpenSlide's name for TIFF files of no scanner.
_GENERIC = "generic-tiff"
_UNCOMPRESSED = 1
# Value 4 of Image Type, of the instance of level 0 (DICOM PS3.3, section C.8.12.4.1.1).
_DICOM_RESAMPLING = "dicom.ImageType[3]"
DAMAGED_REMEDY = "The file may be truncated: compare its checksum with the source's and copy it again"
# Scanners round the spacings of x and y independently; a larger difference means that one of them is wrong.
_MAX_ANISOTROPY = 0.02


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """Technical properties of a slide. Names, dates and free text are not read, as they may identify a patient."""

    vendor: str
    objective_power: str | None
    quickhash: str | None
    bounds: Box | None
    mpp: float
    mpp_source: str
    levels: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class _Level:
    """A level and how it is read: as OpenSlide's level `number`, or from its page where there is a `reader`."""

    size: Size
    number: int
    reader: PageReader | None


class SourceSlide:
    """An open slide file; `read` is thread-safe.

    `pages` are the TIFF pages that may be levels; their pixels may be copied once they are compared with `read`.
    """

    def __init__(self, slide: str, path: Path, mpp: float | None = None) -> None:
        """Open the slide at `path`; `mpp` (um per pixel) overrides the value in the file. Raises `SlideError`."""
        self.slide = slide
        self.path = path
        self._check_file()
        self._is_tiff = is_tiff(path)
        self.pages = read_pages(path) if self._is_tiff else list[Page]()
        # None where no level is read through it.
        self._handle: Any = self._open_handle()
        self._vendor = self._properties.get(openslide.PROPERTY_NAME_VENDOR, _GENERIC)
        self._is_generic = bool(self.pages) and self._vendor == _GENERIC
        try:
            self._levels = self._page_levels() if self._is_generic else self._openslide_levels()
        except PageError as error:
            raise self.error(str(error), error.remedy) from error
        self.metadata = self._read_metadata(mpp)

    def _check_file(self) -> None:
        try:
            mode = self.path.stat().st_mode
        except PermissionError:
            readable = False
        except OSError as error:
            raise self.error("no such file", "Correct the sheet's column path") from error
        else:
            if stat.S_ISDIR(mode):
                raise self.error("a folder, not a slide file", "Name one file of the slide in the sheet's column path")
            readable = os.access(self.path, os.R_OK)
        if not readable:
            raise self.error("no permission to read it", "Give the user that runs the pipeline read permission")
        self.files = slide_files(self.path)
        for file in self.files:
            # OpenSlide reads nothing of the .mrxs file itself.
            if not file.is_file() or (file.stat().st_size == 0 and file.suffix.lower() != ".mrxs"):
                problem = "is empty" if file.is_file() else "is missing"
                name = "the file" if file == self.path else f"its file {file.relative_to(self.path.parent)}"
                raise self.error(f"{name} {problem}", "Copy the slide again, with all of its files")
        if is_vsi(self.path):
            raise self._unsupported("VSI")

    def _open_handle(self) -> openslide.OpenSlide | None:
        """OpenSlide's handle; None where the file is a TIFF that it does not support."""
        try:
            return openslide.OpenSlide(self.path)
        except _READ_ERRORS as error:
            is_unsupported = isinstance(error, openslide.OpenSlideUnsupportedFormatError) or "compression" in str(error)
            if self.pages and is_unsupported:
                return None
            raise self._unsupported(str(error)) from error

    def _unsupported(self, reason: str) -> SlideError:
        # The .mrxs file of MIRAX is a JPEG picture.
        known = other_format(self.path) if len(self.files) == 1 else None
        what, remedy = known or (reason, "Check the file or take the slide out of the sheet")
        return self.error(f"not a slide that OpenSlide can read ({what})", remedy)

    def _page_levels(self) -> tuple[_Level, ...]:
        """Levels of a TIFF of no scanner, by its pages. Where OpenSlide lists the same ones, it reads them."""
        readers = slide_levels(self.pages, lambda page: PageReader(self.path, page))
        self.pages = [reader.page for reader in readers]
        sizes = [(reader.size.width, reader.size.height) for reader in readers]
        if self._handle is not None and list(self._handle.level_dimensions) != sizes:
            self._handle.close()
            self._handle = None
        return tuple(
            _Level(reader.size, number, None if self._is_read_by_openslide(number, reader) else reader)
            for number, reader in enumerate(readers)
        )

    def _is_read_by_openslide(self, number: int, reader: PageReader) -> bool:
        # OpenSlide refuses some uncompressed tiles: "invalid tile byte count" where it is no multiple of 1,024.
        is_compressed = reader.page.tiff.compression != _UNCOMPRESSED
        return self._handle is not None and is_compressed and self._is_whole(number)

    def _openslide_levels(self) -> tuple[_Level, ...]:
        """OpenSlide's levels. One that it would interpolate is read from its page, or left out where none is found."""
        levels = list[_Level]()
        for number, (width, height) in enumerate(self._handle.level_dimensions):
            reader = None if self._is_whole(number) else page_of_level(self.path, number, self.pages)
            if reader is not None or self._is_whole(number):
                levels.append(_Level(Size(width, height), number, reader))
        for page in self.pages:
            if not page.upright and page.size == levels[0].size:
                page.check()
        return tuple(levels)

    def _is_whole(self, number: int) -> bool:
        """Whether the downsample factor of OpenSlide's level is an integer, so that OpenSlide never interpolates."""
        return float(self._handle.level_downsamples[number]).is_integer()

    @property
    def _properties(self) -> Mapping[str, str]:
        return {} if self._handle is None else self._handle.properties

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()

    def scanned(self, size: Size) -> Box:
        """The part of a level of `size`, in its pixels, that was scanned: the slide's bounds, or all of it."""
        # Those of a TIFF file of no scanner only say that tiles of level 0 are missing; other levels may have them.
        bounds = None if self._is_generic else self.metadata.bounds
        if bounds is None:
            return Box(0, 0, size.width, size.height)
        base = self._levels[0].size
        across, down = size.width / base.width, size.height / base.height
        x, y = math.floor(bounds.x * across), math.floor(bounds.y * down)
        right, bottom = math.ceil(bounds.right * across), math.ceil(bounds.bottom * down)
        return Box(x, y, right - x, bottom - y).clipped(size)

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read `box`, in pixels of `level`, as (height, width, 3) uint8. Raises `SlideError` for damaged data.

        What was not scanned is white: pixels outside the slide's bounds, which are not decoded, and transparent ones.
        """
        inside = box.intersection(self.scanned(self._levels[level].size))
        if inside == box:
            return self._read_scanned(box, level)
        out = np.full((box.height, box.width, 3), _WHITE, np.uint8)
        if inside.width and inside.height:
            top, left = inside.y - box.y, inside.x - box.x
            out[top : top + inside.height, left : left + inside.width] = self._read_scanned(inside, level)
        return out

    def _read_scanned(self, box: Box, level: int) -> NDArray[np.uint8]:
        reader = self._levels[level].reader
        if reader is not None:
            try:
                return reader.read(box)
            except ValueError as error:
                raise self._damaged(box, level, error) from error
        try:
            region = self._region(self._handle, box, level)
        except _READ_ERRORS:
            region = self._retry_region(box, level)
        rgb, alpha = region[..., :3], region[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        # OpenSlide returns straight (not premultiplied) alpha.
        opaque = alpha.astype(np.uint16)
        blended = rgb * opaque + _WHITE * (255 - opaque)
        return ((blended + 127) // 255).astype(np.uint8)

    def _region(self, handle: openslide.OpenSlide, box: Box, level: int) -> NDArray[np.uint8]:
        number = self._levels[level].number
        downsample = int(handle.level_downsamples[number])
        corner = box.x * downsample, box.y * downsample
        return np.asarray(handle.read_region(corner, number, (box.width, box.height)))

    def _retry_region(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Retry with a new handle: after its first error an OpenSlide handle fails in every call, in all threads."""
        handle = openslide.OpenSlide(self.path)
        try:
            region = self._region(handle, box, level)
        except _READ_ERRORS as error:
            self._handle = openslide.OpenSlide(self.path)
            raise self._damaged(box, level, error) from error
        self._handle = handle
        return region

    def _damaged(self, box: Box, level: int, error: Exception) -> SlideError:
        return self.error(f"damaged at level {level}, x {box.x}, y {box.y} ({error})", DAMAGED_REMEDY)

    def _read_metadata(self, override: float | None) -> SlideMetadata:
        properties = self._properties
        mpp = self._own_mpp() if override is None else override
        levels = tuple(level.size for level in self._levels)
        if levels[0].width * levels[0].height > self._max_pixels():
            raise self.error(
                f"{levels[0].width} x {levels[0].height} px are more than a file of this size can hold",
                "Check the file or take the slide out of the sheet",
            )
        return SlideMetadata(
            vendor=self._vendor,
            objective_power=properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER),
            quickhash=properties.get(openslide.PROPERTY_NAME_QUICKHASH1),
            bounds=self._bounds(levels[0]),
            mpp=mpp,
            mpp_source="slide" if override is None else "sheet",
            levels=levels,
        )

    def _max_pixels(self) -> int:
        by_bytes = self.path.stat().st_size * _MAX_PIXELS_PER_BYTE
        return min(_MAX_PIXELS, by_bytes) if self._is_tiff else _MAX_PIXELS

    def _bounds(self, canvas: Size) -> Box | None:
        names = (
            openslide.PROPERTY_NAME_BOUNDS_X,
            openslide.PROPERTY_NAME_BOUNDS_Y,
            openslide.PROPERTY_NAME_BOUNDS_WIDTH,
            openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
        )
        if not all(name in self._properties for name in names):
            return None
        bounds = Box(*(int(self._properties[name]) for name in names))
        inside = bounds.clipped(canvas)
        # Damaged ones must not hide the slide.
        return bounds if inside.width and inside.height else None

    def _own_mpp(self) -> float:
        """The scale that the file states: in the tags or the OME-XML of the page of level 0, or OpenSlide's."""
        scale = self.pages[0].mpp if self.pages and self._vendor == _GENERIC else self._openslide_mpp()
        if self._properties.get(_DICOM_RESAMPLING) == "RESAMPLED":
            # Such a slide would pass for one of a coarser scale.
            raise self.error(
                "its finest level is one that was resampled from another, so that one is missing",
                "Copy all instances of the DICOM series into one folder; where there are no more of them, set the "
                "sheet's column mpp for it",
            )
        if scale is None:
            raise self.error("the slide has no scale (um per pixel)", "Set the sheet's column mpp for it")
        x, y = scale
        if not is_plausible_mpp(x) or not is_plausible_mpp(y):
            low, high = MPP_RANGE
            raise self.error(
                f"the slide's scale, {x:g} x {y:g} um per pixel, is not within {low:g} to {high:g}",
                "Set the sheet's column mpp for it",
            )
        if abs(x - y) > _MAX_ANISOTROPY * x:
            raise self.error(
                f"the slide's pixels are not square ({x:g} x {y:g} um)", "Set the sheet's column mpp for it"
            )
        return (x + y) / 2

    def _openslide_mpp(self) -> tuple[float, float] | None:
        try:
            x, y = (self._properties[name] for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y))
            return float(x), float(y)
        except (KeyError, ValueError):
            return None

    def error(self, problem: str, remedy: str) -> SlideError:
        """A `SlideError` about this slide."""
        return SlideError(self.slide, self.path, problem, remedy=remedy)
