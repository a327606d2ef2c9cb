"""How a chunk of a pyramid, (height, width, 3) uint8, becomes bytes: as a JPEG stream or without loss.

The JPEG codec is `imagecodecs_jpeg`, with the name and configuration of the `imagecodecs-zarr` package
(Python 3.12 and later), so that stores open anywhere with it. Where it is installed zarr uses it;
elsewhere `register` makes zarr know the same codec.
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
# A level of a pyramid is (c, y, x); its chunks are kept as (y, x, c), as pictures are.
_ORDER = (1, 2, 0)
_BLOSC_BITSHUFFLE = 2
_ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class ZstdCodec:
    """Zstandard over shuffled bits, by Blosc."""

    chunk: Size
    level: int = _ZSTD_LEVEL

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        blosc = numcodecs.Blosc("zstd", self.level, _BLOSC_BITSHUFFLE, typesize=pixels.shape[2])
        return bytes(blosc.encode(np.ascontiguousarray(pixels)))

    def decode(self, stream: bytes) -> NDArray[np.uint8]:
        shape = (self.chunk.height, self.chunk.width, 3)
        # Blosc's header says how large the result is; it must not decide how much memory is taken.
        if len(stream) < 16 or struct.unpack_from("<I", stream, 4)[0] != np.prod(shape):
            raise ValueError("not a Blosc frame of a chunk")
        try:
            data = numcodecs.blosc.decompress(stream)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return np.frombuffer(data, np.uint8).reshape(shape)


# Encodes and decodes one chunk; `decode` raises `ValueError` for bytes that are damaged.
ChunkCodec = JpegCodec | ZstdCodec


@dataclass(frozen=True)
class ImagecodecsJpeg(ArrayBytesCodec):
    """The zarr codec `imagecodecs_jpeg` for chunks (y, x) or (y, x, 3) of uint8, and any number of axes of 1 before."""

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
        raise NotImplementedError("the size of a JPEG stream depends on the picture")


def register() -> None:
    """Make zarr know the codec, unless an installed package (`imagecodecs-zarr`) does."""
    if not entry_points(group="zarr.codecs", name=JPEG_CODEC_NAME):
        register_codec(JPEG_CODEC_NAME, ImagecodecsJpeg)


register()


def chunk_codec(options: StorageOptions, chunk: Size) -> ChunkCodec:
    """The codec that the config names for chunks that are not copied."""
    return image_codec(options.codec, chunk, options.quality, options.subsampling, options.zstd_level)


def image_codec(
    name: str, size: Size, quality: int, subsampling: str = "444", zstd_level: int = _ZSTD_LEVEL
) -> ChunkCodec:
    """The codec `jpeg` or `zstd` for pictures of `size`."""
    if name == "zstd":
        return ZstdCodec(size, zstd_level)
    return JpegCodec(level=quality, colorspace_data="RGB", colorspace_jpeg="YCbCr", subsampling=subsampling)


def level_array_codecs(codec: ChunkCodec) -> dict[str, Any]:
    """The keyword arguments of `zarr.create_array` that name this codec, for the level of a pyramid."""
    return {"filters": [TransposeCodec(order=_ORDER)], **image_array_codecs(codec)}


def image_array_codecs(codec: ChunkCodec) -> dict[str, Any]:
    """The same for arrays whose chunks are pictures (y, x, c) as they are."""
    if isinstance(codec, ZstdCodec):
        blosc = BloscCodec(cname="zstd", clevel=codec.level, shuffle="bitshuffle", typesize=3)
        return {"serializer": BytesCodec(), "compressors": blosc}
    return {"serializer": ImagecodecsJpeg(codec), "compressors": None}


def level_codec_from_metadata(metadata: list[dict[str, Any]], chunk: Size) -> ChunkCodec:
    """The codec in the metadata of a pyramid level; `ValueError` for chains other than `level_array_codecs` writes."""
    first, *others = metadata or [{}]
    if first.get("name") != "transpose" or tuple(first["configuration"]["order"]) != _ORDER:
        raise ValueError("its codecs are not those of a pyramid")
    return image_codec_from_metadata(others, chunk)


def image_codec_from_metadata(metadata: list[dict[str, Any]], size: Size) -> ChunkCodec:
    """The codec of pictures of `size` that metadata name; `ValueError` for what `image_array_codecs` does not make."""
    names = [codec["name"] for codec in metadata]
    if names == [JPEG_CODEC_NAME]:
        return JpegCodec.from_configuration(metadata[0].get("configuration", {}))
    if names == ["bytes", "blosc"]:
        return ZstdCodec(size, metadata[1]["configuration"]["clevel"])
    raise ValueError(f"codecs {', '.join(names)} are not those of pictures")
