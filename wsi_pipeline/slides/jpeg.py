"""JPEG streams: encoding and decoding as a zarr configuration says, and tiles of TIFF files as streams.

Markers and segments: ITU-T T.81, annex B.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, fields
from typing import Any, Self

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Size

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Comments and application data, other than what JFIF and Adobe say of the colours.
_TEXT = frozenset({0xFE, *range(0xE1, 0xEE), 0xEF})
# Application data that say something of the colours.
_JFIF, _ADOBE = 0xE0, 0xEE
# What Adobe's marker calls the colour spaces: Adobe Technical Note 5116, section 18.
_TRANSFORMS = {"RGB": 0, "YCbCr": 1}
_BYTES_KEYS = ("tables", "header")
# Writers may pad a tile behind its end marker.
_PADDING = 8


@dataclass(frozen=True, slots=True)
class JpegCodec:
    """Pictures (y, x) or (y, x, 3) of uint8 as JPEG streams; the names are those of the `imagecodecs-zarr` package.

    `level` is the quality when encoding. `colorspace_data` and `colorspace_jpeg` name the colour
    spaces of the array and inside the stream (`RGB`, `YCbCr`, `GRAYSCALE`); without them the stream's
    own markers decide. `subsampling` is `444`, `422` or `420`. `tables` are those of abbreviated
    streams; `header` goes before each chunk's bytes, which then lack their end marker. The other keys
    are passed to `imagecodecs` as they are.
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
        """Read the configuration in a store's metadata; `ValueError` for unknown keys."""
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
        """The keys that are set, as JSON values."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            key: base64.b64encode(value).decode() if key in _BYTES_KEYS else value
            for key, value in given.items()
            if value is not None
        }

    def decode(self, stream: bytes | memoryview) -> NDArray[Any]:
        """The pixels of a stream, (y, x) or (y, x, channels); `ValueError` where it is damaged."""
        if self.header is not None:
            stream = b"".join((self.header, stream, EOI))
        # Passed only where it is set: older releases do not know it.
        more: dict[str, Any] = {} if self.fancyupsampling is None else {"fancyupsampling": self.fancyupsampling}
        more |= {"tables": self.tables, "colorspace": self.colorspace_jpeg, "outcolorspace": self.colorspace_data}
        decode: Any = imagecodecs.jpeg8_decode
        try:
            pixels: NDArray[Any] = decode(stream, **more)
        except imagecodecs.Jpeg8Error as error:
            raise ValueError(f"damaged JPEG stream: {error}") from error
        return pixels

    def encode(self, pixels: NDArray[Any]) -> bytes:
        """(y, x) or (y, x, channels) as a stream."""
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
    """A stream, or what stands before its data, with the tables of its TIFF page merged in."""
    if not tables:
        return stream
    # Some writers leave out the end marker of the tables.
    return b"".join((SOI, tables.removeprefix(SOI).removesuffix(EOI), stream[len(SOI) :]))


def strip_metadata(head: bytes) -> bytes:
    """Tables, or what stands before the data of a stream, without comments and application data (Exif, XMP)."""
    kept, at = [SOI], len(SOI)
    while at + 4 <= len(head):
        stop = at + 1 if head[at + 1] == 0xFF else at + 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        if head[at + 1] not in _TEXT:
            kept.append(head[at:stop])
        at = stop
    return b"".join((*kept, head[at:]))


def to_jpeg_file(jpeg: JpegCodec, stream: bytes) -> bytes:
    """A chunk's stream as a file that any viewer shows in its real colours, without decoding it."""
    if jpeg.header is not None:
        stream = b"".join((jpeg.header, stream, EOI))
    stream = merge_tables(jpeg.tables, stream)
    transform = _TRANSFORMS.get(jpeg.colorspace_jpeg or "")
    if transform is None:
        return stream
    said = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([transform])
    kept, at = [SOI, said], len(SOI)
    while at + 4 <= len(stream) and stream[at] == 0xFF and stream[at + 1] != _SCAN:
        stop = at + 1 if stream[at + 1] == 0xFF else at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] not in (_JFIF, _ADOBE):
            kept.append(stream[at:stop])
        at = stop
    return b"".join((*kept, stream[at:]))


def has_end_marker(stream: bytes | memoryview) -> bool:
    """Whether a stream has its end marker."""
    return stream[-2:] == EOI or EOI in bytes(stream[-_PADDING:])


def read_header(stream: bytes | memoryview, size: Size) -> bytes:
    """What stands before the compressed data of a whole tile; `ValueError` unless that is of `size`, 3 x 8 bits."""
    if stream[:2] != SOI:
        raise ValueError("the data of the tile does not begin as a JPEG stream")
    frame, at = b"", len(SOI)
    while True:
        head = bytes(stream[at : at + 10])
        if len(head) < 10 or head[0] != 0xFF:
            raise ValueError("the JPEG stream of the tile has no scan")
        if head[1] == _SCAN:
            break
        if head[1] in _FRAMES:
            frame = head
        # A marker may be preceded by any number of bytes 0xFF.
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
