"""The zarr v3 codec `imagecodecs_jpeg`, and JPEG tiles of TIFF files as streams that stand alone.

Name and configuration are those of the `imagecodecs-zarr` package (Python 3.12 and later), so that
stores open anywhere with it. Where it is installed it is used; elsewhere `register` makes zarr know
the same codec.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, Self

import imagecodecs
import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.registry import register_codec

CODEC = "imagecodecs_jpeg"
START, END = b"\xff\xd8", b"\xff\xd9"


@dataclass(frozen=True)
class ImagecodecsJpeg(ArrayBytesCodec):
    """Chunks (y, x) or (y, x, 3) of uint8 as JPEG streams.

    `level` is the quality when encoding. `colorspace_data` and `colorspace_jpeg` name the colour
    spaces of the array and inside the stream (`RGB`, `YCbCr`, `GRAYSCALE`); without them the stream's
    own markers decide. `subsampling` is `444`, `422` or `420`.
    """

    is_fixed_size = False

    level: int | None = None
    colorspace_data: str | None = None
    colorspace_jpeg: str | None = None
    subsampling: str | None = None

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        _, configuration = parse_named_configuration(data, CODEC, require_configuration=False)
        given: dict[str, Any] = dict(configuration or {})
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"{CODEC}: {', '.join(sorted(unknown))} is not supported here; install imagecodecs-zarr")
        return cls(**given)

    def to_dict(self) -> dict[str, JSON]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        configuration: dict[str, JSON] = {name: value for name, value in values.items() if value is not None}
        return {"name": CODEC, "configuration": configuration} if configuration else {"name": CODEC}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = imagecodecs.jpeg8_decode(
            chunk_data.to_bytes(), colorspace=self.colorspace_jpeg, outcolorspace=self.colorspace_data
        )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        stream = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(chunk_data.as_numpy_array()),
            level=self.level,
            colorspace=self.colorspace_data,
            outcolorspace=self.colorspace_jpeg,
            subsampling=self.subsampling,
        )
        return chunk_spec.prototype.buffer.from_bytes(stream)

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size of a JPEG stream depends on the picture")


def register() -> None:
    """Make zarr know the codec, unless the `imagecodecs-zarr` package does."""
    if find_spec("imagecodecs_zarr") is None:
        register_codec(CODEC, ImagecodecsJpeg)


def self_contained(tables: bytes | None, tile: bytes) -> bytes:
    """A tile's stream with the tables of its TIFF page merged in; `ValueError` where it is no JPEG stream."""
    if not tile.startswith(START):
        raise ValueError("the data of the tile does not begin as a JPEG stream")
    if not tables:
        return tile
    inner = tables.removeprefix(START)
    # Some writers leave out the end marker of the tables.
    return START + inner.removesuffix(END) + tile[len(START) :]
