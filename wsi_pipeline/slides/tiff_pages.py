"""The pages of a TIFF file: what each shows, how it is stored, its scale, and why it cannot be read where it cannot.

Tags: TIFF Revision 6.0. Names and physical sizes of OME-TIFF: the OME-XML schema of 2016-06.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

import defusedxml
import numpy as np
import tifffile
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray

from wsi_pipeline.geometry import Size

Kind = Literal["image", "label", "macro", "thumbnail", "mask"]

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Remedies are commands of libvips, which keep the scale. It would save bands that nothing calls RGB as grey.
_NEW = "'NEW.tif[tile,pyramid,compression=jpeg,Q=95,bigtiff,strip]'"
_AS_RGB = f"vips copy TEMP.v {_NEW} --interpretation srgb"
_OTHER_REMEDY = "Export the slide as a tiled RGB TIFF of 8 bits"
_TURN = f"Turn it: vips tiffload SLIDE TEMP.v && vips autorot TEMP.v {_NEW}"
_SCALE_VALUES = (
    f"Reduce it to 8 bits: vips linear SLIDE {_NEW} F 0.5 --uchar, where F is 255 divided by the largest value "
    "(0.00389 for 65535, 0.0623 for 4095)"
)
_CONVERT_COLORS = f"Convert it: vips colourspace SLIDE {_NEW} srgb"
_TAKE_RGB = f"If the first three are red, green and blue: vips extract_band SLIDE TEMP.v 0 --n 3 && {_AS_RGB}"
TAKE_PAGE = f"Write the slide's page to a file of its own: vips copy 'SLIDE[page=0]' {_NEW}, where pages count from 0"
JOIN_PAGES = (
    "If they are red, green and blue, join them: vips bandjoin 'SLIDE[page=0] SLIDE[page=1] SLIDE[page=2]' TEMP.v && "
    f"{_AS_RGB}; else keep one: vips copy 'SLIDE[page=0]' {_NEW}"
)

# A line of ImageDescription or PageName, or the name of an OME image, that begins with one of these words.
_NAMES: dict[str, Kind] = {
    "label": "label",
    "barcode": "label",
    "macro": "macro",
    "overview": "macro",
    "thumbnail": "thumbnail",
}
_NAMED = re.compile(rf"^\s*({'|'.join(_NAMES)})\b", re.IGNORECASE | re.MULTILINE)
_REDUCED, _MASK = 1, 4
# Slides have less than 100; a damaged chain of pages may have no end.
_MAX_PAGES = 1000
# NewSubfileType of macro images in Aperio's files.
_APERIO_MACRO = 9
_PAGE_NAME, _TILE_WIDTH, _ORIENTATION, _RESOLUTION_UNIT = 285, 322, 274, 296
_X_RESOLUTION, _Y_RESOLUTION = 282, 283
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}
# Names in OME-XML and in ImageJ's description, which escapes µ.
_UM_PER_UNIT_NAME = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "\\u00B5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "nm": 1e-3,
    "in": 25_400.0,
    "inch": 25_400.0,
}  # µ has two code points
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
# Their decoders return RGB whatever the photometric interpretation: JPEG, WebP.
_DECODED_TO_RGB = (7, 50001)
_UPRIGHT = (0, 1)


class PageError(ValueError):
    """Pages cannot be read as a slide; the text names them."""

    def __init__(self, problem: str, remedy: str = _OTHER_REMEDY) -> None:
        super().__init__(problem)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the pixels of a page cannot be read as RGB of 8 bits, and what to do about it."""

    text: str
    remedy: str = _OTHER_REMEDY


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One image of a TIFF file.

    `index` counts from 0; images in SubIFDs have the index of their page, and are `reduced`, as are pages with that bit
    of NewSubfileType. `kind` is what tags and names say. `planes` counts the channels, focal planes and times that are
    stored as images of their own. `mpp` is (x, y) in um per pixel. `problem` says why the pixels cannot be read as RGB.
    `offsets` and `counts` are those of the tiles or strips, in bytes.
    """

    index: int
    size: Size
    kind: Kind
    reduced: bool
    tiled: bool
    planes: int
    mpp: tuple[float, float] | None
    problem: Problem | None
    upright: bool
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tiff: tifffile.TiffPage

    @property
    def pixels(self) -> int:
        return self.size.width * self.size.height

    def __str__(self) -> str:
        return f"page {self.index + 1} ({self.size.width} x {self.size.height} px)"

    def check(self) -> None:
        """Raise `PageError` where the pixels cannot be read."""
        if self.problem is not None:
            raise PageError(f"{self} {self.problem.text}", self.problem.remedy)


@dataclass(frozen=True, slots=True)
class _OmeImage:
    """An image of OME-XML: its name, number of planes, and scale (x, y) in um per pixel."""

    name: str
    planes: int
    mpp: tuple[float, float] | None


def is_tiff(path: Path) -> bool:
    """Whether the file begins as a TIFF."""
    with path.open("rb") as file:
        return file.read(4) in TIFF_SIGNATURES


def read_pages(path: Path) -> list[Page]:
    """The first 1,000 pages of a TIFF file with their SubIFDs; none where it is damaged."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as tiff:
            images = _ome_images(tiff)
            found = []
            for index, page in enumerate(islice(tiff.pages, _MAX_PAGES)):
                if isinstance(page, tifffile.TiffPage):
                    found.append(_page(page, index, images.get(index), is_sub=False))
                    subpages = (page.pages if page.subifds else None) or ()
                    found += [
                        _page(sub, index, images.get(index), is_sub=True)
                        for sub in subpages
                        if isinstance(sub, tifffile.TiffPage)
                    ]
            return found if len(found) >= _MAX_PAGES or _is_whole_chain(tiff) else []
    except Exception:  # noqa: BLE001 (tifffile raises many kinds; OpenSlide then says what is wrong with the file)
        return []


def _is_whole_chain(tiff: tifffile.TiffFile) -> bool:
    """Whether the chain of pages ends with its end mark; tifffile takes a broken one for a shorter file."""
    end = tiff.pages.next_page_offset
    tiff.filehandle.seek(end or 0)
    return end is not None and tiff.filehandle.read(tiff.tiff.offsetsize) == bytes(tiff.tiff.offsetsize)


def _page(page: tifffile.TiffPage, index: int, image: _OmeImage | None, *, is_sub: bool) -> Page:
    subfile_type = int(page.subfiletype or 0)
    tags = page.tags
    # Tags that other modules use after the file is closed are loaded here.
    _ = page.jpegtables, page.jpegheader, page.colormap
    mpp = None if is_sub else image.mpp if image is not None and image.mpp is not None else _tag_mpp(page)
    return Page(
        index=index,
        size=Size(page.imagewidth, page.imagelength),
        kind=_kind(page, subfile_type, image),
        reduced=is_sub or bool(subfile_type & _REDUCED),
        # Not `is_tiled`: tifffile presents the restart intervals of NDPI files as tiles.
        tiled=_TILE_WIDTH in tags,
        planes=max(1 if image is None else image.planes, _imagej_planes(page)),
        mpp=mpp,
        problem=_problem(page),
        upright=tags.valueof(_ORIENTATION, default=1) in _UPRIGHT,
        offsets=np.array(page.dataoffsets, np.int64),
        counts=np.array(page.databytecounts, np.int64),
        tiff=page,
    )


def _kind(page: tifffile.TiffPage, subfile_type: int, image: _OmeImage | None) -> Kind:
    if subfile_type == _APERIO_MACRO:
        return "macro"
    if subfile_type & _MASK:
        return "mask"
    # The description of OME-TIFF is XML about all pages.
    texts = [page.description if not page.is_ome else "", str(page.tags.valueof(_PAGE_NAME, default=""))]
    named = _NAMED.search("\n".join([*texts, "" if image is None else image.name]))
    return "image" if named is None else _NAMES[named[1].lower()]


def _problem(page: tifffile.TiffPage) -> Problem | None:
    photometric, samples, compression = int(page.photometric), int(page.samplesperpixel), int(page.compression)
    orientation = page.tags.valueof(_ORIENTATION, default=1)
    if 0 in page.shape or not any(page.databytecounts):
        return Problem("has no pixels", "The program that wrote it may have been interrupted: export or copy it again")
    if page.bitspersample != 8 or int(page.sampleformat) != 1:
        bits = page.bitspersample
        text = f"has {bits} bits per sample" if bits != 8 else "has samples that are not unsigned integers"
        return Problem(text, _SCALE_VALUES)
    if orientation not in _UPRIGHT:
        return Problem(f"is turned or mirrored (TIFF orientation {orientation})", _TURN)
    expected = _SAMPLES.get(photometric)
    if expected is None:
        return Problem(f"has colours that are not RGB (photometric interpretation {photometric})", _CONVERT_COLORS)
    alpha = photometric == _RGB and samples == 4 and tuple(page.extrasamples) in ((1,), (2,))
    if samples != expected and not alpha:
        return Problem(f"has {samples} samples per pixel", _TAKE_RGB)
    if photometric == _YCBCR and (compression not in _DECODED_TO_RGB or int(page.planarconfig) != 1):
        return Problem("has YCbCr pixels that are not JPEG", _CONVERT_COLORS)
    if page.imagedepth != 1:
        return Problem(f"has {page.imagedepth} focal planes")
    try:
        _ = tifffile.TIFF.DECOMPRESSORS[compression], page.decode
    except (KeyError, ValueError, NotImplementedError):
        return Problem(f"has the compression {compression}, which cannot be decoded")
    return None


def _imagej_planes(page: tifffile.TiffPage) -> int:
    # ImageJ may store all images of a stack behind one page.
    found = re.search(r"^images=(\d+)", page.description, re.MULTILINE) if page.is_imagej else None
    return 1 if found is None else int(found[1])


def _tag_mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    um = _UM_PER_UNIT.get(page.tags.valueof(_RESOLUTION_UNIT, default=2))
    if page.is_imagej:
        named = re.search(r"^unit=(.+)$", page.description, re.MULTILINE)
        um = _UM_PER_UNIT_NAME.get(named[1].strip()) if named else None
    per_unit = []
    for code in (_X_RESOLUTION, _Y_RESOLUTION):
        numerator, denominator = page.tags.valueof(code, default=(0, 1))
        per_unit.append(numerator / denominator if denominator else 0.0)
    if um is None or min(per_unit) <= 0:
        return None
    return um / per_unit[0], um / per_unit[1]


def _ome_images(tiff: tifffile.TiffFile) -> dict[int, _OmeImage]:
    """The images of OME-XML by the index of their page; empty where the file is no OME-TIFF."""
    if not tiff.ome_metadata:
        return {}
    try:
        root: Any = fromstring(tiff.ome_metadata)
    except (ParseError, defusedxml.DefusedXmlException):
        return {}
    return dict(_images_of(root))


def _images_of(root: Any) -> Iterator[tuple[int, _OmeImage]]:
    following = 0
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            continue
        samples = sum(int(channel.get("SamplesPerPixel", 1)) for channel in pixels.iterfind("{*}Channel"))
        channels = (
            len(pixels.findall("{*}Channel")) if samples == int(pixels.get("SizeC", 1)) else int(pixels.get("SizeC", 1))
        )
        planes = max(1, channels) * int(pixels.get("SizeZ", 1)) * int(pixels.get("SizeT", 1))
        found = [int(data.get("IFD", following)) for data in pixels.iterfind("{*}TiffData")] or [following]
        for index in range(found[0], found[0] + planes) if len(found) == 1 else found:
            yield index, _OmeImage(image.get("Name", ""), planes, _ome_mpp(pixels))
        following = max(found[0] + planes, max(found) + 1)


def _ome_mpp(pixels: Any) -> tuple[float, float] | None:
    scales = []
    for axis in "XY":
        um = _UM_PER_UNIT_NAME.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            scales.append(float(pixels.get(f"PhysicalSize{axis}", 0)) * (um or 0))
        except ValueError:
            return None
    return (scales[0], scales[1]) if min(scales) > 0 else None
