"""TIFF files in strips, which OpenSlide does not open, with OpenSlide's interface.

libvips reads them; decoded pixels beyond 100 MB go to a temporary file, not into memory.
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
    """The first page of a TIFF in strips as a slide of one level."""

    level_downsamples = (1.0,)

    def __init__(self, path: Path) -> None:
        """Open a file; `OpenSlideUnsupportedFormatError` where it is no RGB or grey TIFF of 8 bits in strips."""
        try:
            with tifffile.TiffFile(path) as tiff:
                is_tiled = bool(tiff.pages.first.is_tiled)
            # libvips would answer from its cache for another file that had this name.
            image = pyvips.Image.new_from_file(str(path), access="random", fail_on="error", revalidate=True)
        except Exception as error:
            raise openslide.OpenSlideUnsupportedFormatError("no TIFF that can be read") from error
        if is_tiled or image.format != "uchar":
            raise openslide.OpenSlideUnsupportedFormatError("no TIFF of 8 bits in strips")
        self._image = (
            image.colourspace("srgb").flatten(background=255) if image.hasalpha() else image.colourspace("srgb")
        )
        self.level_dimensions = ((image.width, image.height),)
        self.properties = {openslide.PROPERTY_NAME_VENDOR: VENDOR}
        if "resolution-unit" in image.get_fields() and min(image.xres, image.yres) > 0:
            self.properties[openslide.PROPERTY_NAME_MPP_X] = str(_UM_PER_MM / image.xres)
            self.properties[openslide.PROPERTY_NAME_MPP_Y] = str(_UM_PER_MM / image.yres)

    def read_region(self, location: tuple[int, int], _: int, size: tuple[int, int]) -> Pillow.Image:
        """The box of `size` at `location` of the only level as RGBA."""
        try:
            pixels = self._image.crop(*location, *size).numpy()
        except pyvips.Error as error:
            raise openslide.OpenSlideError(" ".join(str(error).split())) from error
        return Pillow.fromarray(pixels).convert("RGBA")

    def close(self) -> None:
        """Nothing is held open between reads."""
