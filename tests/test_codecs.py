from __future__ import annotations

import base64
import errno
import fcntl
import importlib.metadata
import os
import time
from pathlib import Path
from types import SimpleNamespace

import google_crc32c
import imagecodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.geometry import Size
from wsi_pipeline.io import direct_io as direct
from wsi_pipeline.io.direct_io import BLOCK_BYTES, write_blocks
from wsi_pipeline.pyramid.codecs import (
    JPEG_CODEC_NAME,
    ImagecodecsJpeg,
    ZstdCodec,
    level_array_codecs,
    level_codec_from_metadata,
    register,
)
from wsi_pipeline.pyramid.shards import ChunkGrid, Shard, write_shard, write_shards
from wsi_pipeline.slides.jpeg import JpegCodec, merge_tables, read_header


def gradient(height: int = 64, width: int = 96) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None] * 2
    return pixels


@pytest.mark.parametrize("subsampling", ["444", "422", "420", (2, 1)])
@pytest.mark.parametrize("colorspace", ["RGB", "YCbCr", None])
def test_zarr_encodes_and_decodes_with_the_codec(
    tmp_path: Path, colorspace: str | None, subsampling: str | tuple[int, int]
) -> None:
    space = colorspace and "RGB"
    codec = ImagecodecsJpeg(
        JpegCodec(level=95, colorspace_data=space, colorspace_jpeg=colorspace, subsampling=subsampling, optimize=True)
    )
    assert ImagecodecsJpeg.from_dict(codec.to_dict()) == codec
    pixels = gradient()
    array = zarr.create_array(
        tmp_path / "a", shape=pixels.shape, chunks=(32, 48, 3), dtype="uint8", serializer=codec, compressors=None
    )
    array[...] = pixels
    read = np.asarray(zarr.open_array(tmp_path / "a", mode="r")[...])
    assert np.abs(read.astype(int) - pixels).max() <= 8
    stream = (tmp_path / "a" / "c" / "0" / "0" / "0").read_bytes()
    np.testing.assert_array_equal(read[:32, :48], codec.jpeg.decode(stream))


def test_grey_chunks_can_be_encoded(tmp_path: Path) -> None:
    grey = gradient()[..., 0]
    array = zarr.create_array(
        tmp_path / "a",
        shape=grey.shape,
        chunks=grey.shape,
        dtype="uint8",
        serializer=ImagecodecsJpeg(JpegCodec(level=100)),
        compressors=None,
    )
    array[...] = grey
    assert np.abs(np.asarray(array[...]).astype(int) - grey).max() <= 2


def test_quality_and_subsampling_change_the_stream() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    sizes = [
        len(JpegCodec(level=level, colorspace_data="RGB", colorspace_jpeg="YCbCr", subsampling=s).encode(pixels))
        for level, s in ((95, "444"), (95, "420"), (50, "420"))
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def split_tables(whole: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into tables and an abbreviated stream (T.81, B.4 and B.5)."""
    tables, rest, at = b"", b"", 2
    while whole[at + 1] != 0xDA:
        length = 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
        segment = whole[at : at + length]
        if segment[1] in (0xDB, 0xC4):
            tables += segment
        else:
            rest += segment
        at += length
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + whole[at:]


def test_tables_and_headers_of_the_configuration_are_used() -> None:
    whole = JpegCodec(level=90, colorspace_data="RGB", colorspace_jpeg="RGB").encode(gradient())
    tables, stream = split_tables(whole)
    wanted = JpegCodec().decode(whole)
    codec = ImagecodecsJpeg(JpegCodec(tables=tables, colorspace_data="RGB", colorspace_jpeg="RGB"))
    named = codec.to_dict()
    assert named["configuration"]["tables"] == base64.b64encode(tables).decode()  # type: ignore[index, call-overload]
    assert ImagecodecsJpeg.from_dict(named) == codec
    np.testing.assert_array_equal(codec.jpeg.decode(stream), wanted)
    np.testing.assert_array_equal(JpegCodec().decode(merge_tables(tables, stream)), wanted)
    assert merge_tables(None, whole) == whole
    at = whole.index(b"\xff\xda")
    np.testing.assert_array_equal(JpegCodec(header=whole[:at]).decode(whole[at:-2]), wanted)


def test_unknown_configuration_keys_are_refused() -> None:
    assert ImagecodecsJpeg(JpegCodec()).to_dict() == {"name": "imagecodecs_jpeg"}
    with pytest.raises(ValueError, match="unknown key size"):
        ImagecodecsJpeg.from_dict({"name": "imagecodecs_jpeg", "configuration": {"size": "x"}})


def test_an_installed_package_with_the_codec_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []
    monkeypatch.setattr("wsi_pipeline.pyramid.codecs.register_codec", lambda name, _: registered.append(name))
    entry = importlib.metadata.EntryPoint(JPEG_CODEC_NAME, "imagecodecs.zarr:Jpeg", "zarr.codecs")
    for entries, wanted in ([], [JPEG_CODEC_NAME]), ([entry], []):
        found = importlib.metadata.EntryPoints(entries)
        monkeypatch.setattr("wsi_pipeline.pyramid.codecs.entry_points", found.select)
        registered.clear()
        register()
        assert registered == wanted


def test_damaged_streams_raise_value_error() -> None:
    chunk = Size(96, 64)
    lossless = ZstdCodec(chunk)
    frame = lossless.encode(gradient())
    np.testing.assert_array_equal(lossless.decode(frame), gradient())
    no_frame, damaged = "not a Blosc frame of the size of a chunk", "error during blosc decompression: -"
    for data, problem in (
        (b"", no_frame),
        (frame[:10], no_frame),
        (b"\xff" * 200, no_frame),
        (lossless.encode(gradient(8, 8)), no_frame),
        (lossless.encode(gradient(64, 97)), no_frame),
        (frame[:16] + bytes(40), damaged),
        (frame[:-1], damaged),
        (frame[:60] + bytes(20) + frame[80:], damaged),
    ):
        with pytest.raises(ValueError, match=f"^{problem}"):
            lossless.decode(data)
    whole = JpegCodec(level=90).encode(gradient())
    for data, problem in (
        (b"", "Empty input file"),
        (b"\xff\xd8", "JPEG datastream contains no image"),
        (b"\0" * 100, "Not a JPEG file: starts with 0x00 0x00"),
        (whole[: whole.index(b"\xff\xda")], "Invalid JPEG file structure: missing SOS marker"),
    ):
        with pytest.raises(ValueError, match=f"^damaged JPEG stream: {problem}"):
            JpegCodec().decode(data)


def test_stream_headers_are_checked_before_copying() -> None:
    whole = imagecodecs.jpeg8_encode(gradient(), 90)
    size = Size(96, 64)
    assert whole.startswith(read_header(whole, size))
    assert read_header(whole, size)[-2:] == b"\xff\xda"
    assert read_header(b"\xff\xd8\xff\xff" + whole[2:], size)[4:] == read_header(whole, size)[2:]
    for stream, problem in (
        (b"\0" + whole, "does not begin"),
        (b"\xff\xd8" + bytes(300), "no scan"),
        (b"\xff\xd8\xff\xda" + bytes(300), "no frame"),
        (b"\xff\xd8\xff", "no scan"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_header(stream, size)
    with pytest.raises(ValueError, match="is 96 x 64 px of 3 x 8 bits, the tile 96 x 63"):
        read_header(whole, Size(96, 63))
    with pytest.raises(ValueError, match="of 1 x 8 bits"):
        read_header(imagecodecs.jpeg8_encode(gradient()[..., 0].copy()), size)


def test_only_the_codec_chains_of_pyramids_are_accepted() -> None:
    chunk = Size(8, 8)
    transpose = {"name": "transpose", "configuration": {"order": [1, 2, 0]}}
    assert level_codec_from_metadata([transpose, {"name": JPEG_CODEC_NAME}], chunk) == JpegCodec()
    for chain in ([{"name": JPEG_CODEC_NAME}], [transpose, {"name": "bytes"}], []):
        with pytest.raises(ValueError, match="are not those of"):
            level_codec_from_metadata(chain, chunk)
    assert set(level_array_codecs(ZstdCodec(chunk))) == {"filters", "serializer", "compressors"}


@given(st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=300)), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_zarr_reads_the_shards(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes | None]) -> None:
    folder = tmp_path_factory.mktemp("shard")
    padded = [None if c is None else c.ljust(300, b"\7") for c in chunks]
    array = zarr.create_array(
        folder / "a", shape=(600, 2), chunks=(150, 2), shards=(600, 2), dtype="uint8", compressors=None, fill_value=9
    )
    path = folder / "a" / "c" / "0" / "0"
    parts = [None if c is None else (c[:7], memoryview(c)[7:]) for c in padded]
    assert write_shard(path, range(4), parts, 4)[0] == sum(c is not None for c in chunks)
    for k, data in enumerate(padded):
        wanted = np.full(300, 9, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        np.testing.assert_array_equal(np.asarray(array[150 * k : 150 * (k + 1)]).ravel(), wanted)
        if path.exists():
            assert Shard(path, 4).chunk(k) == data


def test_damaged_shards_raise_value_error(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    write_shard(path, [0, 1], [(b"abc",), (b"def",)], 2)
    content = path.read_bytes()
    for data, problem in (
        (content[:10], "too short"),
        (content[:-1] + b"\0", "checksum"),
        (content[-36:], "beyond the end"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=problem):
            Shard(path, 2).chunk(1)


@pytest.mark.parametrize("refuses", ["never", "opening", "writing"])
def test_shards_are_whole_blocks_with_and_without_direct_io(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    """File systems without direct I/O fail in open() or in write()."""
    direct_flags = list[bool]()

    def opened(path: Path, flags: int, mode: int) -> int:
        direct_flags.append(bool(flags & os.O_DIRECT))
        if refuses == "opening" and direct_flags[-1]:
            raise OSError(errno.EINVAL, "no")
        return os.open(path, flags, mode)

    def written(file: int, data: memoryview) -> int:
        if refuses == "writing" and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return os.write(file, data[:BLOCK_BYTES])

    monkeypatch.setattr(direct, "os", SimpleNamespace(**vars(os) | {"open": opened, "write": written}))
    long = bytes(range(256)) * 100
    for data in (long, b"short"):
        path = tmp_path / str(len(data))
        _, digest = write_shard(path, [1], [(data[:3], data[3:])], 2)
        content = path.read_bytes()
        assert len(content) % BLOCK_BYTES == 0
        assert digest == f"crc32c:{google_crc32c.value(content):08x}:{len(content)}"
        assert Shard(path, 2).chunk(1) == data
        # The buffer is reused, but the padding must hold no bytes of the previous file.
        assert not any(content[len(data) : -36])
    assert direct_flags == ([True, False] if refuses == "opening" else [True]) * 2


def test_other_write_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_blocks(tmp_path / "no" / "x", [b"a"], b"b")


def test_one_error_cancels_the_remaining_shards(tmp_path: Path) -> None:
    grid = ChunkGrid.of(Size(800, 8), Size(8, 8), 8)
    started: list[tuple[int, int]] = []

    def encoded(tiles: list[tuple[int, int]]) -> list[tuple[bytes, ...] | None]:
        started.extend(tiles)
        if started[1:]:
            # Writing takes time, so that the error of the first shard cancels the queued ones.
            time.sleep(0.05)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_shards(tmp_path, grid, encoded, 1)
    assert len(started) < 20


def test_a_full_size_slide_has_at_most_2000_files() -> None:
    for tile in (Size(240, 240), Size(256, 256), Size(512, 512), Size(1024, 1024)):
        files, size = 1, Size(200_000, 100_000)
        while max(size.width, size.height) > 512:
            files += 1 + len(ChunkGrid.of(size, tile, 4096).shards())
            size = Size(size.width // 2, size.height // 2)
        assert files <= 2000
