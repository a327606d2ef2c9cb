"""Source slides, read through OpenSlide."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.config.base import MPP_RANGE, is_plausible_mpp
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.slides.stripped_tiff import StrippedTiff

_Handle = openslide.OpenSlide | StrippedTiff
_READ_ERRORS = (openslide.OpenSlideError, OSError)

WHITE = (255, 255, 255)
# Above any scanner's output: a larger size means a damaged file, or one built to fill disks.
_MAX_PIXELS = 10**12
# Upper bound for a TIFF; blank JPEG tiles have about 150 pixels per byte.
_MAX_PIXELS_PER_BYTE = 20_000
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DAMAGED_REMEDY = "The file may be truncated: compare its checksum with the source's and copy it again"
# Scanners round the spacings of x and y independently; a larger difference means that one of them is wrong.
_MAX_ANISOTROPY = 0.02


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """Technical properties of a slide. Names, dates and free text are not read, as they may identify a patient."""

    vendor: str
    objective_power: str | None
    background: tuple[int, int, int]
    quickhash: str | None
    bounds: Box | None
    mpp: float
    mpp_source: str
    levels: tuple[Size, ...]


class SourceSlide:
    """An open slide file; `read` is thread-safe."""

    def __init__(self, slide: str, path: Path, mpp: float | None = None) -> None:
        """Open the slide at `path`; `mpp` (um per pixel) overrides the value in the file. Raises `SlideError`."""
        self.slide = slide
        self.path = path
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
        except _READ_ERRORS as error:
            raise self.error(
                f"not a slide that OpenSlide can read ({error})", "Check the file or take the slide out of the sheet"
            ) from error

    def close(self) -> None:
        self._handle.close()

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read `box`, in pixels of `level`, as (height, width, 3) uint8. Raises `SlideError` for damaged data.

        Transparent pixels, which some formats have between scanned areas, get the background colour.
        """
        try:
            region = self._region(self._handle, box, level)
        except _READ_ERRORS:
            region = self._retry_region(box, level)
        rgb, alpha = region[..., :3], region[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        # OpenSlide returns straight (not premultiplied) alpha.
        opaque = alpha.astype(np.uint16)
        blended = rgb * opaque + np.array(self.metadata.background, np.uint16) * (255 - opaque)
        return ((blended + 127) // 255).astype(np.uint8)

    def _region(self, handle: _Handle, box: Box, level: int) -> NDArray[np.uint8]:
        corner, _ = self._corner(box, level)
        return np.asarray(handle.read_region(corner, level, (box.width, box.height)))

    def _retry_region(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Retry with a new handle: after its first error an OpenSlide handle fails in every call, in all threads."""
        handle = self._open()
        try:
            region = self._region(handle, box, level)
        except _READ_ERRORS as error:
            self._handle = self._open()
            raise self.error(f"damaged at level {level}, x {box.x}, y {box.y} ({error})", DAMAGED_REMEDY) from error
        self._handle = handle
        return region

    def has_integer_downsample(self, level: int) -> bool:
        """Whether the downsample factor of `level` is an integer, so that OpenSlide never interpolates there."""
        return float(self._downsamples[level]).is_integer()

    def interpolation_offset(self, box: Box, level: int) -> tuple[float, float]:
        """Sub-pixel offset (x, y) at which OpenSlide reads `box`, in pixels of `level`.

        OpenSlide takes the corner in whole level-0 pixels and divides it by one downsample factor for both
        axes. Where the result is not an integer, it interpolates between the pixels of the level.
        """
        return self._corner(box, level)[1]

    def _corner(self, box: Box, level: int) -> tuple[tuple[int, int], tuple[float, float]]:
        downsample = self._downsamples[level]
        x, y = round(box.x * downsample), round(box.y * downsample)
        return (x, y), (x / downsample - box.x, y / downsample - box.y)

    def _read_metadata(self, override: float | None) -> SlideMetadata:
        properties = self._handle.properties
        mpp = self._mpp_property() if override is None else override
        color = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        background = tuple(bytes.fromhex(color)) if color else WHITE
        levels = tuple(Size(width, height) for width, height in self._handle.level_dimensions)
        if levels[0].width * levels[0].height > self._max_pixels():
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
            mpp_source="slide" if override is None else "sheet",
            levels=levels,
        )

    def _is_tiff(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(4) in _TIFF_SIGNATURES

    def _max_pixels(self) -> int:
        by_bytes = self.path.stat().st_size * _MAX_PIXELS_PER_BYTE
        return min(_MAX_PIXELS, by_bytes) if self._is_tiff() else _MAX_PIXELS

    def _bounds(self) -> Box | None:
        names = (
            openslide.PROPERTY_NAME_BOUNDS_X,
            openslide.PROPERTY_NAME_BOUNDS_Y,
            openslide.PROPERTY_NAME_BOUNDS_WIDTH,
            openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
        )
        values = [self._handle.properties.get(name) for name in names]
        return None if None in values else Box(*(int(value) for value in values if value is not None))

    def _mpp_property(self) -> float:
        properties = self._handle.properties
        try:
            x = float(properties[openslide.PROPERTY_NAME_MPP_X])
            y = float(properties[openslide.PROPERTY_NAME_MPP_Y])
        except (KeyError, ValueError):
            raise self.error("the slide has no scale (um per pixel)", "Set the sheet's column mpp for it") from None
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

    def error(self, problem: str, remedy: str) -> SlideError:
        """A `SlideError` about this slide."""
        return SlideError(self.slide, self.path, problem, remedy=remedy)
