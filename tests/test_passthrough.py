from __future__ import annotations

import json
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
import zarr
from conftest import DATA, converted, needs_data, tissue_picture, write_tiff
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.config import PyramidOptions
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size, tiles
from wsi_pipeline.jpeg import ImagecodecsJpeg, register, self_contained
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.shards import write_shard
from wsi_pipeline.slides import SourceSlide
from wsi_pipeline.stages import convert
from wsi_pipeline.tiff import TiledTiff


def levels_of(folder: Path) -> list[dict[str, int | str]]:
    return json.loads((folder / "pyramid.json").read_text())["levels"]


def assert_same_pixels(source: Path, folder: Path) -> None:
    """Every tile of every level is what OpenSlide reads, where OpenSlide does not interpolate."""
    pyramid, slide = Pyramid(folder / "pyramid.ome.zarr"), SourceSlide("s", source, 0.5)
    for level, size in enumerate(slide.facts.levels):
        boxes = tiles(size, 700) if slide.is_exact(level) else [Box(0, 0, min(700, size.width), min(700, size.height))]
        for box in boxes:
            np.testing.assert_array_equal(pyramid.read(box, level), slide.read(box, level))


def pink(height: int = 1100, width: int = 1700) -> np.ndarray:
    return tissue_picture(width, height)


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
@pytest.mark.parametrize("tile", [(256, 256), (240, 240), (128, 512)])
def test_tiles_are_copied_for_both_colour_spaces(tmp_path: Path, photometric: str, tile: tuple[int, int]) -> None:
    source = tmp_path / "s.tif"
    tifffile.imwrite(
        source, pink(), tile=tile, photometric="rgb", compression="jpeg",
        compressionargs={"level": 90, "outcolorspace": photometric}, resolution=(20000, 20000), resolutionunit=3,
    )  # fmt: skip
    folder = converted(tmp_path, source)
    first = levels_of(folder)[0]
    assert first["method"] == "copied"
    assert first["compared_tiles"] == 16
    assert_same_pixels(source, folder)
    stored = sum(p.stat().st_size for p in (folder / "pyramid.ome.zarr" / "0").rglob("*") if p.is_file())
    assert stored < 1.1 * source.stat().st_size + 10_000


def test_every_level_of_a_pyramid_is_copied_and_a_file_holds_many_tiles(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", pink(2100, 2300))
    folder = converted(tmp_path, source)
    with openslide.OpenSlide(source) as slide:
        assert [level["method"] for level in levels_of(folder)] == ["copied"] * slide.level_count
    assert_same_pixels(source, folder)
    # 9 x 9 tiles of 256 px in shards of 4 x 4 tiles.
    assert len([p for p in (folder / "pyramid.ome.zarr" / "0" / "c").rglob("*") if p.is_file()]) == 9


def test_other_slides_and_passthrough_off_are_read(tmp_path: Path) -> None:
    lossless = write_tiff(tmp_path / "d.tif", pink(), compression="deflate")
    assert {level["method"] for level in levels_of(converted(tmp_path, lossless, slide="d"))} == {"read"}
    source, out = write_tiff(tmp_path / "s.tif", pink()), tmp_path / "off"
    convert.run("s", source, out / "pyramid.ome.zarr", out / "pyramid.json", PyramidOptions(passthrough=False))
    assert {level["method"] for level in levels_of(out)} == {"read"}
    assert_same_pixels(source, out)


def test_plain_zarr_opens_the_store_with_the_codec_registered(tissue_slide: Path, tissue_pyramid: Pyramid) -> None:
    register()
    array = zarr.open_array(tissue_slide / "pyramid.ome.zarr" / "0", mode="r")
    wanted = tissue_pyramid.read(Box(100, 150, 700, 500), 0)
    np.testing.assert_array_equal(np.asarray(array[:, 150:650, 100:800]).transpose(1, 2, 0), wanted)
    metadata = json.loads((tissue_slide / "pyramid.ome.zarr" / "0" / "zarr.json").read_text())
    inner = metadata["codecs"][0]["configuration"]["codecs"]
    assert inner == [
        {"name": "transpose", "configuration": {"order": [1, 2, 0]}},
        {"name": "imagecodecs_jpeg", "configuration": {"colorspace_data": "RGB", "colorspace_jpeg": "RGB"}},
    ]


def write_flat(path: Path) -> tuple[int, int]:
    """A slide of one level; returns offset and length of the tile in column 2 of row 1."""
    tifffile.imwrite(
        path, pink(), tile=(256, 256), photometric="rgb", compression="jpeg", resolution=(20000, 20000),
        resolutionunit=3,
    )  # fmt: skip
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        return page.dataoffsets[9], page.databytecounts[9]


def test_a_damaged_tile_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    source = tmp_path / "s.tif"
    offset, count = write_flat(source)
    data = bytearray(source.read_bytes())
    data[offset : offset + count] = bytes(count)
    source.write_bytes(data)
    with pytest.raises(SlideError, match=r"slide s1: .*level 0, column 2, row 1 \("):
        converted(tmp_path, source)
    assert list((tmp_path / "s1").iterdir()) == []


def test_a_file_that_ends_before_its_tiles_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "s.tif"
    offset, count = write_flat(source)
    source.write_bytes(source.read_bytes()[: offset + count // 2])
    with TiledTiff(source) as tiff:
        level = tiff.level(Size(1700, 1100))
        assert level is not None
        assert tiff.tile(level, 1, 1) is not None
        with pytest.raises(ValueError, match="the file ends before the tile"):
            tiff.tile(level, 2, 1)
    with pytest.raises(SlideError, match="slide s1"):
        converted(tmp_path, source)
    assert not (tmp_path / "s1").exists()


def test_pixels_that_openslide_does_not_confirm_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiff(tmp_path / "s.tif", pink())
    read = SourceSlide.read
    monkeypatch.setattr(SourceSlide, "read", lambda self, box, level: read(self, box, level) // 2)
    with pytest.raises(SlideError, match="is not what OpenSlide reads there"):
        converted(tmp_path, source)


@given(st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=300)), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_shards_are_zarrs(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes | None]) -> None:
    folder = tmp_path_factory.mktemp("shard")
    padded = [None if c is None else c.ljust(300, b"\7") for c in chunks]
    array = zarr.create_array(
        folder / "a", shape=(600, 2), chunks=(150, 2), shards=(600, 2), dtype="uint8", compressors=None, fill_value=9
    )
    assert write_shard(folder / "a" / "c" / "0" / "0", enumerate(padded), 4) == sum(c is not None for c in chunks)
    for k, data in enumerate(padded):
        wanted = np.full(300, 9, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        np.testing.assert_array_equal(np.asarray(array[150 * k : 150 * (k + 1)]).ravel(), wanted)


@pytest.mark.parametrize("colorspace", ["RGB", "YCbCr", None])
def test_the_codec_encodes_and_decodes(tmp_path: Path, colorspace: str | None) -> None:
    register()
    codec = ImagecodecsJpeg(
        level=95, colorspace_data=colorspace and "RGB", colorspace_jpeg=colorspace, subsampling="444"
    )
    assert ImagecodecsJpeg.from_dict(codec.to_dict()) == codec
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[..., 0] = np.arange(96)
    pixels[..., 1] = np.arange(64)[:, None] * 2
    array = zarr.create_array(
        tmp_path / "a", shape=pixels.shape, chunks=(32, 48, 3), dtype="uint8", serializer=codec, compressors=None
    )
    array[...] = pixels
    read = np.asarray(zarr.open_array(tmp_path / "a", mode="r")[...])
    assert np.abs(read.astype(int) - pixels).max() <= 6
    assert next((tmp_path / "a" / "c").rglob("0")).exists()


def test_a_configuration_that_is_not_supported_is_refused() -> None:
    assert ImagecodecsJpeg().to_dict() == {"name": "imagecodecs_jpeg"}
    with pytest.raises(ValueError, match="header is not supported here; install imagecodecs-zarr"):
        ImagecodecsJpeg.from_dict({"name": "imagecodecs_jpeg", "configuration": {"header": "x"}})


def test_tables_are_merged_into_a_tile() -> None:
    whole = imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8))
    assert self_contained(None, whole) == whole
    assert self_contained(b"\xff\xd8\xff\xdb\0\3x\xff\xd9", b"\xff\xd8rest") == b"\xff\xd8\xff\xdb\0\3xrest"
    with pytest.raises(ValueError, match="does not begin as a JPEG stream"):
        self_contained(None, b"\0\0")


def test_what_is_no_tiff_has_no_tiled_levels(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0" + b"\xff" * 50)
    with TiledTiff(path) as tiff:
        assert tiff.level(Size(10, 10)) is None


@needs_data
@pytest.mark.parametrize(
    ("name", "copied"), [("slides/CMU-1-Small-Region.svs", 1), ("camelyon16-level7/tumor_102_level7.tif", 5)]
)
def test_real_slides_are_copied(tmp_path: Path, name: str, copied: int) -> None:
    folder = converted(tmp_path, DATA / name)
    assert [level["method"] for level in levels_of(folder)].count("copied") == copied
    assert_same_pixels(DATA / name, folder)
