"""Slides in the Leica SCN format as OpenSlide reads it: sections on a canvas, which is the area of the macro image.

Layout: https://openslide.org/formats/leica/.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

_NM_PER_PX = 500
_IMAGE = """<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="Leica SCN400" version="1"/><pixels sizeX="{width}" sizeY="{height}">{levels}</pixels>
<view sizeX="{nm[0]}" sizeY="{nm[1]}" offsetX="{offset[0]}" offsetY="{offset[1]}" spacingZ="0"/><scanSettings>
<objectiveSettings><objective>{objective}</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4
</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"""


def write_scn(path: Path, sections: list[tuple[int, int, NDArray[np.uint8]]], canvas: tuple[int, int]) -> Path:
    """Write sections, (x, y, pixels (h, w, 3) uint8), on a canvas of (width, height) pixels of 0.5 um; two levels."""
    macro = np.full((canvas[1] // 40, canvas[0] // 40, 3), 240, np.uint8)
    pages, images = [macro], [_image("macro", [macro], 0, (0, 0), canvas, "0.6")]
    for number, (x, y, pixels) in enumerate(sections):
        levels = [pixels, np.ascontiguousarray(pixels[::4, ::4])]
        images.append(_image(f"section{number}", levels, len(pages), (x, y), pixels.shape[1::-1], "20"))
        pages += levels
    nm = [edge * _NM_PER_PX for edge in canvas]
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:a">'
        f'<collection name="c" uuid="urn:uuid:b" sizeX="{nm[0]}" sizeY="{nm[1]}"><barcode>QQ==</barcode>'
        f"{''.join(images)}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, page in enumerate(pages):
            file.write(
                page,
                photometric="rgb",
                tile=(256, 256),
                compression="deflate",
                resolution=(10_000_000 // _NM_PER_PX, 10_000_000 // _NM_PER_PX),
                resolutionunit="CENTIMETER",
                description=None if number else description,
                metadata=None,
            )
    return path


def _image(
    name: str,
    levels: list[NDArray[np.uint8]],
    first_page: int,
    corner: tuple[int, int],
    size: tuple[int, ...],
    objective: str,
) -> str:
    dimensions = (
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{k}" ifd="{first_page + k}"/>'
        for k, level in enumerate(levels)
    )
    return _IMAGE.format(
        name=name,
        width=levels[0].shape[1],
        height=levels[0].shape[0],
        levels="".join(dimensions),
        nm=[edge * _NM_PER_PX for edge in size],
        offset=[edge * _NM_PER_PX for edge in corner],
        objective=objective,
    )
