"""Slides in the MIRAX format as OpenSlide 4 reads it: a canvas of camera images, of which a few were taken.

Layout: https://openslide.org/formats/mirax/.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

# Edge of an image, and the distance to the next one, which overlaps it.
IMAGE_PX, STEP_PX = 128, 120
_VERSION, _ID = b"01.02", b"0123456789ABCDEF"


def write_mirax(
    path: Path,
    scanned: NDArray[np.uint8],
    *,
    corner: tuple[int, int],
    canvas: tuple[int, int],
    gaps: Collection[tuple[int, int]] = (),
    levels: int = 3,
    fill: int = 0x000000,
    mpp: float = 0.5,
) -> Path:
    """Write `path`, an .mrxs file, with its folder, and return it.

    `scanned` is (h, w, 3) uint8 of whole images, `STEP_PX` apart. `corner` and `canvas` are (column, row) and (columns,
    rows) in images; `gaps` are images within `scanned`, counted from its corner, that were not taken. Each level has a
    data file of its own. `fill` is the colour of what was not scanned, as 0xBBGGRR: black on some scanners.
    """
    folder = path.with_suffix("")
    folder.mkdir()
    rows, columns = scanned.shape[0] // STEP_PX, scanned.shape[1] // STEP_PX
    taken = np.zeros((canvas[1], canvas[0]), bool)
    for row in range(rows):
        for column in range(columns):
            taken[corner[1] + row, corner[0] + column] = (column, row) not in gaps
    pages = list[bytes]()
    for level in range(levels):
        data, entries = b"", list[tuple[int, int, int, int]]()
        for (row, column), pixels in _images(scanned, taken, corner, 2**level).items():
            stream = imagecodecs.jpeg8_encode(pixels, level=95)
            entries.append((row * canvas[0] + column, len(data), len(stream), level))
            data += stream
        (folder / f"Data{level:04}.dat").write_bytes(data)
        pages.append(struct.pack("<2i", len(entries), 0) + b"".join(struct.pack("<4i", *entry) for entry in entries))
    (folder / "Index.dat").write_bytes(_index(pages))
    (folder / "Slidedat.ini").write_text(_slidedat(canvas, levels, fill, mpp), encoding="utf-8-sig")
    path.write_bytes(b"\xff\xd8 the preview of the slide")
    return path


def _images(
    scanned: NDArray[np.uint8], taken: NDArray[np.bool_], corner: tuple[int, int], factor: int
) -> dict[tuple[int, int], NDArray[np.uint8]]:
    """The images of a level by (row, column) of their first image of level 0: `factor` x `factor` of these in one."""
    found = dict[tuple[int, int], NDArray[np.uint8]]()
    edge = IMAGE_PX // factor
    for row in range(0, taken.shape[0], factor):
        for column in range(0, taken.shape[1], factor):
            places = [(r, c) for r, c in np.ndindex(factor, factor) if taken[row:, column:][r : r + 1, c : c + 1].any()]
            for r, c in places:
                y, x = (STEP_PX * (k - first) for k, first in ((row + r, corner[1]), (column + c, corner[0])))
                own = scanned[y : y + IMAGE_PX, x : x + IMAGE_PX]
                small = own.reshape(edge, factor, edge, factor, 3).mean((1, 3)).round().astype(np.uint8)
                image = found.setdefault((row, column), np.zeros((IMAGE_PX, IMAGE_PX, 3), np.uint8))
                image[r * edge : (r + 1) * edge, c * edge : (c + 1) * edge] = small
    return found


def _index(pages: list[bytes]) -> bytes:
    """Index.dat: roots of both trees of records, a pointer for each level, its record, and its page."""
    start = len(_VERSION) + len(_ID) + 8
    records = start + 4 * len(pages)
    first_page = records + 8 * len(pages)
    offsets = [first_page + sum(map(len, pages[:level])) for level in range(len(pages))]
    pointers = struct.pack(f"<{len(pages)}i", *(records + 8 * level for level in range(len(pages))))
    body = b"".join(struct.pack("<2i", 0, offset) for offset in offsets)
    return _VERSION + _ID + struct.pack("<2i", start, 0) + pointers + body + b"".join(pages)


def _slidedat(canvas: tuple[int, int], levels: int, fill: int, mpp: float) -> str:
    general = {
        "SLIDE_VERSION": "01.02",
        "SLIDE_ID": _ID.decode(),
        "SLIDE_NAME": "Doe, Jane 100 %",
        "IMAGENUMBER_X": canvas[0],
        "IMAGENUMBER_Y": canvas[1],
        "OBJECTIVE_MAGNIFICATION": 20,
        "CameraImageDivisionsPerSide": 1,
    }
    hierarchical = {"HIER_COUNT": 1, "NONHIER_COUNT": 0, "INDEXFILE": "Index.dat", "HIER_0_NAME": "Slide zoom level"}
    hierarchical |= {"HIER_0_COUNT": levels}
    hierarchical |= {f"HIER_0_VAL_{level}_SECTION": f"LAYER_0_LEVEL_{level}_SECTION" for level in range(levels)}
    files = {"FILE_COUNT": levels, **{f"FILE_{level}": f"Data{level:04}.dat" for level in range(levels)}}
    sections: dict[str, dict[str, object]] = {"GENERAL": general, "HIERARCHICAL": hierarchical, "DATAFILE": files}
    for level in range(levels):
        sections[f"LAYER_0_LEVEL_{level}_SECTION"] = {
            "IMAGE_CONCAT_FACTOR": int(level > 0),
            "OVERLAP_X": (IMAGE_PX - STEP_PX) / 2**level,
            "OVERLAP_Y": (IMAGE_PX - STEP_PX) / 2**level,
            "MICROMETER_PER_PIXEL_X": mpp * 2**level,
            "MICROMETER_PER_PIXEL_Y": mpp * 2**level,
            "IMAGE_FORMAT": "JPEG",
            "IMAGE_FILL_COLOR_BGR": fill,
            "DIGITIZER_WIDTH": IMAGE_PX,
            "DIGITIZER_HEIGHT": IMAGE_PX,
        }
    return "".join(
        f"[{name}]\r\n" + "".join(f"{key} = {value}\r\n" for key, value in keys.items())
        for name, keys in sections.items()
    )
