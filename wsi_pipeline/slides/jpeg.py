"""JPEG streams: a zarr-configurable codec, and the editing of marker segments without decoding.

Markers and segments: ITU-T T.81, annex B.
"""

from __future__ import annotations

import base64
from collections.abc import Container, Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Size

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_SOS = 0xDA
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# COM and APPn, except APP0 (JFIF) and APP14 (Adobe), which determine the colour space.
_METADATA = frozenset({0xFE, *range(0xE1, 0xEE), 0xEF})
# APP0 and APP14.
_COLOR_MARKERS = (0xE0, 0xEE)
# Transform flag of APP14: Adobe Technical Note 5116, section 18.
_ADOBE_TRANSFORMS = {"RGB": 0, "YCbCr": 1}
_BYTES_KEYS = ("tables", "header")


@dataclass(frozen=True, slots=True)
class JpegCodec:
    """JPEG codec for images (y, x) or (y, x, 3) of uint8; the keys are those of the `imagecodecs-zarr` package.

    `level` is the quality for encoding. `colorspace_data` and `colorspace_jpeg` are the colour spaces of
    the array and of the stream (`RGB`, `YCbCr`, `GRAYSCALE`); the markers of the stream decide where they
    are None. `subsampling` is `444`, `422` or `420`. `tables` holds the shared tables of abbreviated
    streams. `header` is prepended to each chunk, which is then stored without its EOI marker. All other
    keys are passed to `imagecodecs` unchanged.
    """

    level: int | None = None
    bitspersample: int | None = None
    tables: bytes | None = None
    header: bytes | None = None
    colorspace_data: str | None = None
    colorspace_jpeg: str | None = None
    subsampling: str | tuple[int, int] | None = None
    optimize: bool | None = None
    smoothing: bool | None = None
    lossless: bool | None = None
    predictor: int | None = None
    fancyupsampling: bool | None = None

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Self:
        """Parse the configuration in zarr metadata. Raises `ValueError` for unknown keys."""
        given = dict(configuration)
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown key {', '.join(sorted(unknown))}")
        for key in _BYTES_KEYS:
            if isinstance(given.get(key), str):
                given[key] = base64.b64decode(given[key], validate=True)
        if isinstance(given.get("subsampling"), list):
            given["subsampling"] = tuple(given["subsampling"])
        return cls(**given)

    def configuration(self) -> dict[str, Any]:
        """The keys that are not None, as JSON values."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            key: base64.b64encode(value).decode() if key in _BYTES_KEYS else value
            for key, value in given.items()
            if value is not None
        }

    def decode(self, stream: bytes | memoryview) -> NDArray[Any]:
        """Decode a stream to (y, x) or (y, x, channels) uint8. Raises `ValueError` for a damaged stream."""
        if self.header is not None:
            stream = b"".join((self.header, stream, EOI))
        # Older releases of imagecodecs have no such argument, so None is not passed.
        arguments: dict[str, Any] = {} if self.fancyupsampling is None else {"fancyupsampling": self.fancyupsampling}
        arguments |= {"tables": self.tables, "colorspace": self.colorspace_jpeg, "outcolorspace": self.colorspace_data}
        decode: Any = imagecodecs.jpeg8_decode
        try:
            pixels: NDArray[Any] = decode(stream, **arguments)
        except imagecodecs.Jpeg8Error as error:
            raise ValueError(f"damaged JPEG stream: {error}") from error
        return pixels

    def encode(self, pixels: NDArray[Any]) -> bytes:
        """Encode (y, x) or (y, x, channels) uint8 as a stream."""
        return bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(pixels),
                level=self.level,
                colorspace=self.colorspace_data,
                outcolorspace=self.colorspace_jpeg,
                subsampling=self.subsampling,
                optimize=self.optimize,
                smoothing=self.smoothing,
                lossless=self.lossless,
                predictor=self.predictor,
                bitspersample=self.bitspersample,
            )
        )


def merge_tables(tables: bytes | None, stream: bytes) -> bytes:
    """Insert the shared tables of a TIFF page (tag JPEGTables) after the SOI marker of a stream or of its header."""
    if not tables:
        return stream
    # Some writers omit the EOI marker of the tables.
    return b"".join((SOI, tables.removeprefix(SOI).removesuffix(EOI), stream[len(SOI) :]))


def strip_metadata(head: bytes) -> bytes:
    """Remove comments and application data (Exif, XMP) from tables or from the header of a stream."""
    return b"".join((SOI, *_kept_parts(head, _METADATA)))


def to_jpeg_file(jpeg: JpegCodec, stream: bytes) -> bytes:
    """A chunk as a JPEG file with the correct colours in any viewer: tables merged, APP14 rewritten, not decoded."""
    if jpeg.header is not None:
        stream = b"".join((jpeg.header, stream, EOI))
    stream = merge_tables(jpeg.tables, stream)
    transform = _ADOBE_TRANSFORMS.get(jpeg.colorspace_jpeg or "")
    if transform is None:
        return stream
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([transform])
    return b"".join((SOI, adobe, *_kept_parts(stream, _COLOR_MARKERS)))


def _kept_parts(stream: bytes, removed: Container[int]) -> Iterator[bytes]:
    """The segments after the SOI marker whose markers are not `removed`, then all from the SOS marker on."""
    at = len(SOI)
    while at + 4 <= len(stream) and stream[at] == 0xFF and stream[at + 1] != _SOS:
        stop = at + 1 if stream[at + 1] == 0xFF else at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] not in removed:
            yield stream[at:stop]
        at = stop
    yield stream[at:]


def read_header(stream: bytes | memoryview, size: Size) -> bytes:
    """The segments of a tile up to and including the SOS marker.

    Raises `ValueError` unless the frame has `size` and 3 components of 8 bits.
    """
    if stream[:2] != SOI:
        raise ValueError("the data of the tile does not begin as a JPEG stream")
    frame = b""
    at = len(SOI)
    while True:
        head = bytes(stream[at : at + 10])
        if len(head) < 10 or head[0] != 0xFF:
            raise ValueError("the JPEG stream of the tile has no scan")
        if head[1] == _SOS:
            break
        if head[1] in _SOF:
            frame = head
        # Any number of fill bytes 0xFF may precede a marker.
        at += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:4], "big")
    if not frame:
        raise ValueError("the JPEG stream of the tile has no frame")
    height, width = int.from_bytes(frame[5:7], "big"), int.from_bytes(frame[7:9], "big")
    if (width, height, frame[4], frame[9]) != (size.width, size.height, 8, 3):
        raise ValueError(
            f"the JPEG stream is {width} x {height} px of {frame[9]} x {frame[4]} bits, the tile {size.width} x "
            f"{size.height} px of 3 x 8"
        )
    return bytes(stream[: at + 2])
