"""Slides as the scanner wrote them, read through OpenSlide."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import MPP_RANGE, Box, Size, is_plausible_mpp
from wsi_pipeline.slides.stripped_tiff import StrippedTiff

_Handle = openslide.OpenSlide | StrippedTiff
_UNREADABLE = (openslide.OpenSlideError, OSError)

WHITE = (255, 255, 255)
# No scanner makes more; a file that says so is damaged or made to fill disks.
_MOST_PIXELS = 10**12
# Nor does any TIFF hold more in so few bytes: blank JPEG tiles have some 150 pixels a byte.
_MOST_PIXELS_PER_BYTE = 20_000
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DAMAGED_REMEDY = "The file may be truncated: compare its checksum with the source's and copy it again"
# Scanners round the two spacings on their own; a larger difference means that one is wrong.
_ANISOTROPY = 0.02


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """What is carried over from the source: technical properties only, no names, dates or free text."""

    vendor: str
    objective_power: str | None
    background: tuple[int, int, int]
    quickhash: str | None
    bounds: Box | None
    mpp: float
    mpp_source: str
    levels: tuple[Size, ...]


class SourceSlide:
    """One open slide file; `read` may be called from several threads."""

    def __init__(self, slide: str, path: Path, mpp: float | None = None) -> None:
        """Open the slide `path`; `mpp` is the sheet's override. Raises `SlideError`."""
        self.slide, self.path = slide, path
        self._check_file()
        self._handle = self._open()
        self._downsamples = tuple(self._handle.level_downsamples)
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

    def _open(self) -> _Handle:
        try:
            try:
                return openslide.OpenSlide(self.path)
            except openslide.OpenSlideUnsupportedFormatError:
                if not self._is_tiff():
                    raise
                return StrippedTiff(self.path)
        except _UNREADABLE as error:
            raise self.error(
                f"not a slide that OpenSlide can read ({error})", "Check the file or take the slide out of the sheet"
            ) from error

    def close(self) -> None:
        self._handle.close()

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Pixels of `box`, in pixels of `level`, as (height, width, 3) uint8.

        Transparent pixels, which some formats have between scanned areas, take the background colour.
        """
        try:
            region = self._region(self._handle, box, level)
        except _UNREADABLE:
            region = self._region_again(box, level)
        rgb, alpha = region[..., :3], region[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        # OpenSlide returns straight alpha: blend on the background in integers.
        opaque = alpha.astype(np.uint16)
        blended = rgb * opaque + np.array(self.metadata.background, np.uint16) * (255 - opaque)
        return ((blended + 127) // 255).astype(np.uint8)

    def _region(self, handle: _Handle, box: Box, level: int) -> NDArray[np.uint8]:
        corner, _ = self._corner(box, level)
        return np.asarray(handle.read_region(corner, level, (box.width, box.height)))

    def _region_again(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read with a handle that no other thread has: after an error a handle answers every call with it."""
        own = self._open()
        try:
            region = self._region(own, box, level)
        except _UNREADABLE as error:
            self._handle = self._open()
            raise self.error(f"damaged at level {level}, x {box.x}, y {box.y} ({error})", DAMAGED_REMEDY) from error
        self._handle = own
        return region

    def has_whole_downsample(self, level: int) -> bool:
        """Whether OpenSlide reads every box of `level` without interpolating between its pixels."""
        return float(self._downsamples[level]).is_integer()

    def interpolation_offset(self, box: Box, level: int) -> tuple[float, float]:
        """How far right of and below the first pixel of `box` OpenSlide reads, in pixels of `level`.

        OpenSlide takes corners in whole level-0 pixels and divides them by one downsample for both axes;
        where that is no whole number it interpolates between the pixels of the level.
        """
        return self._corner(box, level)[1]

    def _corner(self, box: Box, level: int) -> tuple[tuple[int, int], tuple[float, float]]:
        downsample = self._downsamples[level]
        x, y = round(box.x * downsample), round(box.y * downsample)
        return (x, y), (x / downsample - box.x, y / downsample - box.y)

    def _read_metadata(self, override: float | None) -> SlideMetadata:
        properties = self._handle.properties
        mpp, mpp_source = (override, "sheet") if override is not None else (self._own_mpp(), "slide")
        color = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        background = tuple(bytes.fromhex(color)) if color else WHITE
        levels = tuple(Size(width, height) for width, height in self._handle.level_dimensions)
        if levels[0].width * levels[0].height > self._most_pixels():
            raise self.error(
                f"{levels[0].width} x {levels[0].height} px are more than a file of this size can hold",
                "Check the file or take the slide out of the sheet",
            )
        return SlideMetadata(
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            objective_power=properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER),
            background=(background[0], background[1], background[2]),
            quickhash=properties.get(openslide.PROPERTY_NAME_QUICKHASH1),
            bounds=self._bounds(),
            mpp=mpp,
            mpp_source=mpp_source,
            levels=levels,
        )

    def _is_tiff(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(4) in _TIFF

    def _most_pixels(self) -> int:
        by_bytes = self.path.stat().st_size * _MOST_PIXELS_PER_BYTE
        return min(_MOST_PIXELS, by_bytes) if self._is_tiff() else _MOST_PIXELS

    def _bounds(self) -> Box | None:
        names = (
            openslide.PROPERTY_NAME_BOUNDS_X,
            openslide.PROPERTY_NAME_BOUNDS_Y,
            openslide.PROPERTY_NAME_BOUNDS_WIDTH,
            openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
        )
        values = [self._handle.properties.get(name) for name in names]
        return None if None in values else Box(*(int(value) for value in values if value is not None))

    def _own_mpp(self) -> float:
        properties = self._handle.properties
        try:
            x = float(properties[openslide.PROPERTY_NAME_MPP_X])
            y = float(properties[openslide.PROPERTY_NAME_MPP_Y])
        except (KeyError, ValueError):
            raise self.error(
                "the slide does not say its scale (um per pixel)", "Set the sheet's column mpp for it"
            ) from None
        if not is_plausible_mpp(x) or not is_plausible_mpp(y):
            low, high = MPP_RANGE
            raise self.error(
                f"the slide's scale, {x:g} x {y:g} um per pixel, is not within {low:g} to {high:g}",
                "Set the sheet's column mpp for it",
            )
        if abs(x - y) > _ANISOTROPY * x:
            raise self.error(
                f"the slide's pixels are not square ({x:g} x {y:g} um)", "Set the sheet's column mpp for it"
            )
        return (x + y) / 2

    def error(self, problem: str, remedy: str) -> SlideError:
        """A `SlideError` about this slide."""
        return SlideError(self.slide, self.path, problem, remedy=remedy)
