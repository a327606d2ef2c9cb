"""Stripped TIFF files behind OpenSlide's interface; OpenSlide itself opens only tiled TIFF.

libvips reads the file. Decoded pixels beyond 100 MB go to a temporary file instead of memory.
"""

from __future__ import annotations

from pathlib import Path

import openslide
import pyvips
import tifffile
from PIL import Image as Pillow

VENDOR = "stripped-tiff"
_UM_PER_MM = 1000.0


class StrippedTiff:
    """The first page of a stripped TIFF as a slide with one level."""

    level_downsamples = (1.0,)

    def __init__(self, path: Path) -> None:
        """Open a file. Raises `OpenSlideUnsupportedFormatError` unless it is a stripped RGB or grey TIFF of 8 bits."""
        try:
            with tifffile.TiffFile(path) as tiff:
                is_tiled = bool(tiff.pages.first.is_tiled)
            # Without revalidate, libvips returns its cached image for a replaced file of the same name.
            image = pyvips.Image.new_from_file(str(path), access="random", fail_on="error", revalidate=True)
        except Exception as error:
            raise openslide.OpenSlideUnsupportedFormatError("not a readable TIFF") from error
        if is_tiled or image.format != "uchar":
            raise openslide.OpenSlideUnsupportedFormatError("not a stripped TIFF of 8 bits")
        self._image = (
            image.colourspace("srgb").flatten(background=255) if image.hasalpha() else image.colourspace("srgb")
        )
        self.level_dimensions = ((image.width, image.height),)
        self.properties = {openslide.PROPERTY_NAME_VENDOR: VENDOR}
        if "resolution-unit" in image.get_fields() and min(image.xres, image.yres) > 0:
            self.properties[openslide.PROPERTY_NAME_MPP_X] = str(_UM_PER_MM / image.xres)
            self.properties[openslide.PROPERTY_NAME_MPP_Y] = str(_UM_PER_MM / image.yres)

    def read_region(self, location: tuple[int, int], _: int, size: tuple[int, int]) -> Pillow.Image:
        """The region of `size` pixels at `location` as RGBA. Raises `OpenSlideError` for damaged data."""
        try:
            pixels = self._image.crop(*location, *size).numpy()
        except pyvips.Error as error:
            raise openslide.OpenSlideError(" ".join(str(error).split())) from error
        return Pillow.fromarray(pixels).convert("RGBA")

    def close(self) -> None:
        """Do nothing: no file stays open between reads."""
