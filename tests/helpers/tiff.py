"""TIFF files with given pages and tags, intact or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile


def write_pages(
    path: Path,
    pages: list[np.ndarray],
    *,
    tile: tuple[int, int] = (256, 256),
    outcolorspace: str = "ycbcr",
    **first: Any,
) -> Path:
    """Write a TIFF of JPEG-tiled pages; `first` holds further arguments of the first page."""
    with tifffile.TiffWriter(path) as tiff:
        for k, page in enumerate(pages):
            tiff.write(
                page,
                tile=tile,
                photometric="rgb",
                compression="jpeg",
                metadata=None,
                compressionargs={"level": 90, "outcolorspace": outcolorspace},
                resolution=(20000, 20000),
                resolutionunit=3,
                subfiletype=1 if k else 0,
                **(first if k == 0 else {}),
            )
    return path


def philips(levels: int) -> dict[str, Any]:
    """Arguments of `write_pages` for a TIFF that OpenSlide reads as Philips: the software and the spacing by level."""
    spacing = '<Attribute Name="DICOM_PIXEL_SPACING">"{0}" "{0}"</Attribute>'
    levels_xml = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing.format(0.00025 * 2**k)}</DataObject>'
        for k in range(levels)
    )
    description = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        f'<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>{spacing.format(0.00025)}'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels_xml}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    return {"description": description, "software": "Philips DP v1.0"}


def drop_tile(path: Path, page: int, index: int, count: int = 0, offset: int = 0) -> None:
    """Set byte count and offset of a tile; with the defaults the tile is missing."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[page].tags  # type: ignore[union-attr]
        for name, value in (("TileByteCounts", count), ("TileOffsets", offset)):
            values = list(tags[name].value)
            values[index] = value
            tags[name].overwrite(values)
