"""Codecs of pyramid and patch chunks, (height, width, 3) uint8: JPEG, or lossless Zstandard.

The JPEG codec has the name `imagecodecs_jpeg` and the configuration of the `imagecodecs-zarr` package (Python 3.12 and
later), so that any zarr installation with that package reads the stores. Where the package is missing, `register`
registers an equivalent codec.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Self

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, TransposeCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.registry import register_codec

from wsi_pipeline.config import StorageOptions
from wsi_pipeline.geometry import Size
from wsi_pipeline.slides.jpeg import JpegCodec

JPEG_CODEC_NAME = "imagecodecs_jpeg"
# Level arrays are (c, y, x); their chunks are stored as (y, x, c), as image codecs expect.
_CHUNK_AXES = (1, 2, 0)
_BLOSC_BITSHUFFLE = 2
_ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class ZstdCodec:
    """Lossless codec: Blosc with bit shuffle and Zstandard."""

    chunk: Size
    level: int = _ZSTD_LEVEL

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        blosc = numcodecs.Blosc("zstd", self.level, _BLOSC_BITSHUFFLE, typesize=pixels.shape[2])
        return bytes(blosc.encode(np.ascontiguousarray(pixels)))

    def decode(self, stream: bytes) -> NDArray[np.uint8]:
        shape = (self.chunk.height, self.chunk.width, 3)
        # Check the decompressed size in Blosc's header first: decompress allocates whatever a damaged header states.
        if len(stream) < 16 or struct.unpack_from("<I", stream, 4)[0] != np.prod(shape):
            raise ValueError("not a Blosc frame of the size of a chunk")
        try:
            data = numcodecs.blosc.decompress(stream)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return np.frombuffer(data, np.uint8).reshape(shape)


# Encodes and decodes one chunk; `decode` raises `ValueError` for damaged bytes.
ChunkCodec = JpegCodec | ZstdCodec


@dataclass(frozen=True)
class ImagecodecsJpeg(ArrayBytesCodec):
    """The zarr codec `imagecodecs_jpeg` for uint8 chunks (y, x) or (y, x, 3), with any number of leading axes of 1."""

    is_fixed_size = False

    jpeg: JpegCodec

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        _, configuration = parse_named_configuration(data, JPEG_CODEC_NAME, require_configuration=False)
        return cls(JpegCodec.from_configuration(dict(configuration or {})))

    def to_dict(self) -> dict[str, JSON]:
        configuration = self.jpeg.configuration()
        return {"name": JPEG_CODEC_NAME, "configuration": configuration} if configuration else {"name": JPEG_CODEC_NAME}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = await asyncio.to_thread(self.jpeg.decode, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        pixels = np.asarray(chunk_data.as_numpy_array())
        while pixels.ndim > 3 and pixels.shape[0] == 1:
            pixels = pixels[0]
        stream = await asyncio.to_thread(self.jpeg.encode, pixels)
        return chunk_spec.prototype.buffer.from_bytes(stream)

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size of a JPEG stream depends on the image")


def register() -> None:
    """Register the codec with zarr, unless an installed package (`imagecodecs-zarr`) provides it."""
    if not entry_points(group="zarr.codecs", name=JPEG_CODEC_NAME):
        register_codec(JPEG_CODEC_NAME, ImagecodecsJpeg)


register()


def chunk_codec(options: StorageOptions, chunk: Size) -> ChunkCodec:
    """The codec that the config selects for re-encoded levels."""
    return image_codec(options.codec, chunk, options.quality, options.subsampling, options.zstd_level)


def image_codec(
    name: str, size: Size, quality: int, subsampling: str = "444", zstd_level: int = _ZSTD_LEVEL
) -> ChunkCodec:
    """The codec `jpeg` or `zstd` for images of `size`."""
    if name == "zstd":
        return ZstdCodec(size, zstd_level)
    return JpegCodec(level=quality, colorspace_data="RGB", colorspace_jpeg="YCbCr", subsampling=subsampling)


def level_array_codecs(codec: ChunkCodec) -> dict[str, Any]:
    """Keyword arguments of `zarr.create_array` for a pyramid level (c, y, x) with this codec."""
    return {"filters": [TransposeCodec(order=_CHUNK_AXES)], **image_array_codecs(codec)}


def image_array_codecs(codec: ChunkCodec) -> dict[str, Any]:
    """Keyword arguments of `zarr.create_array` for an array whose chunks are images (y, x, c)."""
    if isinstance(codec, ZstdCodec):
        blosc = BloscCodec(cname="zstd", clevel=codec.level, shuffle="bitshuffle", typesize=3)
        return {"serializer": BytesCodec(), "compressors": blosc}
    return {"serializer": ImagecodecsJpeg(codec), "compressors": None}


def level_codec_from_metadata(metadata: list[dict[str, Any]], chunk: Size) -> ChunkCodec:
    """The codec in the metadata of a pyramid level; `ValueError` for chains other than `level_array_codecs` writes."""
    first, *others = metadata or [{}]
    if first.get("name") != "transpose" or tuple(first["configuration"]["order"]) != _CHUNK_AXES:
        raise ValueError("the codecs are not those of a pyramid")
    return image_codec_from_metadata(others, chunk)


def image_codec_from_metadata(metadata: list[dict[str, Any]], size: Size) -> ChunkCodec:
    """The codec of images of `size` in metadata; `ValueError` for chains other than `image_array_codecs` writes."""
    names = [codec["name"] for codec in metadata]
    if names == [JPEG_CODEC_NAME]:
        return JpegCodec.from_configuration(metadata[0].get("configuration", {}))
    if names == ["bytes", "blosc"]:
        return ZstdCodec(size, metadata[1]["configuration"]["clevel"])
    raise ValueError(f"codecs {', '.join(names)} are not those of images")
