from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
import zarr

from helpers.paths import DATA, needs_data
from helpers.slides import converted, tissue_picture, write_tiff
from helpers.tiff import drop_tile, philips, write_pages
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import passthrough
from wsi_pipeline.pyramid.level import Level
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.slides.jpeg import JpegCodec, strip_metadata
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.slides.tiff_pages import read_pages
from wsi_pipeline.slides.tiff_tiles import TiledTiff
from wsi_pipeline.stages import convert


def levels_of(folder: Path) -> list[dict[str, Any]]:
    levels: list[dict[str, Any]] = json.loads((folder / "pyramid.json").read_text())["levels"]
    return levels


def methods(folder: Path) -> list[str]:
    return [level["method"] for level in levels_of(folder)]


def assert_same_pixels(source: Path, folder: Path) -> None:
    """Assert that all levels equal the slide's pixels."""
    pyramid, slide = Pyramid(folder / "pyramid.ome.zarr"), SourceSlide("s", source, 0.5)
    for level, size in enumerate(slide.metadata.levels):
        box = Box(0, 0, size.width, size.height)
        np.testing.assert_array_equal(pyramid.read(box, level), slide.read(box, level))


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
@pytest.mark.parametrize("tile", [(256, 256), (240, 240), (128, 512)])
def test_tiles_are_copied_for_both_colour_spaces(tmp_path: Path, photometric: str, tile: tuple[int, int]) -> None:
    source = write_pages(tmp_path / "s.tif", [tissue_picture(1700, 1100)], tile=tile, outcolorspace=photometric)
    folder = converted(tmp_path, source)
    first = levels_of(folder)[0]
    assert first["method"] == "copied"
    assert first["compared_tiles"] == 16
    assert_same_pixels(source, folder)


def test_every_level_is_copied_and_a_shard_holds_many_tiles(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture(2300, 2100))
    folder = converted(tmp_path, source)
    with openslide.OpenSlide(source) as slide:
        assert methods(folder) == ["copied"] * slide.level_count
    assert_same_pixels(source, folder)
    # 9 x 9 tiles of 256 px in shards of 4 x 4 tiles.
    assert len([p for p in (folder / "pyramid.ome.zarr" / "0" / "c").rglob("*") if p.is_file()]) == 9


@pytest.mark.parametrize("most", [0.0, 1.0])
def test_tables_are_merged_unless_they_would_make_the_store_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float
) -> None:
    monkeypatch.setattr(passthrough, "MAX_TABLES_SHARE", most)
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    folder = converted(tmp_path, source)
    assert {level["tables"] for level in levels_of(folder)} == {"merged" if most else "shared"}
    assert_same_pixels(source, folder)
    level = Pyramid(folder / "pyramid.ome.zarr").levels[0]
    stream = level.stream(2, 2)
    assert stream is not None
    alone = JpegCodec(colorspace_data="RGB", colorspace_jpeg="RGB")
    if most:
        np.testing.assert_array_equal(alone.decode(stream), level.chunk(2, 2))
    else:
        tiles = [(column, row) for row in range(level.grid.rows) for column in range(level.grid.columns)]
        stored = sum(len(level.stream(*tile) or b"") for tile in tiles)
        with TiledTiff(source, read_pages(source)) as tiff:
            (page,) = tiff.levels(level.size)
            assert stored == page.nbytes
        with pytest.raises(ValueError, match="damaged JPEG stream"):
            alone.decode(stream)


def test_plain_zarr_opens_the_store_with_the_codec_registered(tissue_slide: Path, tissue_pyramid: Pyramid) -> None:
    array = zarr.open_array(tissue_slide / "pyramid.ome.zarr" / "0", mode="r")
    wanted = tissue_pyramid.read(Box(100, 150, 700, 500), 0)
    np.testing.assert_array_equal(np.asarray(array[:, 150:650, 100:800]).transpose(1, 2, 0), wanted)
    metadata = json.loads((tissue_slide / "pyramid.ome.zarr" / "0" / "zarr.json").read_text())
    transpose, jpeg = metadata["codecs"][0]["configuration"]["codecs"]
    assert transpose == {"name": "transpose", "configuration": {"order": [1, 2, 0]}}
    assert jpeg["name"] == "imagecodecs_jpeg"
    assert jpeg["configuration"]["colorspace_data"] == "RGB"


def test_philips_slides_with_padded_sizes_and_missing_tiles_are_copied(tmp_path: Path) -> None:
    pages = [np.full((1280, 1536, 3), 255, np.uint8), np.full((768, 768, 3), 255, np.uint8)]
    pages.append(np.full((512, 512, 3), 255, np.uint8))
    picture = tissue_picture(1536, 1280)
    for k, page in enumerate(pages):
        page[: 1280 >> k, : 1536 >> k] = picture[:: 2**k, :: 2**k]
    source = write_pages(tmp_path / "s.tif", pages, **philips(3))
    for page_number, index in ((0, 0), (0, 7), (1, 4)):
        drop_tile(source, page_number, index)
    folder = converted(tmp_path, source)
    receipt = json.loads((folder / "pyramid.json").read_text())
    assert receipt["vendor"] == "philips"
    sizes = [(level["width"], level["height"]) for level in receipt["levels"]]
    assert sizes == [(1536, 1280), (768, 640), (384, 320)]
    assert methods(folder) == ["copied"] * 3
    assert [level["absent_tiles"] for level in receipt["levels"]] == [2, 1, 0]
    assert_same_pixels(source, folder)
    assert (Pyramid(folder / "pyramid.ome.zarr").read(Box(256, 256, 256, 256), 0) == 255).all()


def test_aperio_levels_with_missing_tiles_are_read_by_openslide(tmp_path: Path) -> None:
    picture = tissue_picture()
    description = "Aperio Image Library v10\r\n1600x1200 (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5|User = abc"
    pages = [picture, np.ascontiguousarray(picture[::2, ::2])]
    source = write_pages(tmp_path / "s.svs", pages, description=description)
    assert methods(converted(tmp_path, source, slide="whole")) == ["copied", "copied"]
    drop_tile(source, 0, 9)
    drop_tile(source, 1, 5)
    folder = converted(tmp_path, source)
    assert methods(folder) == ["copied", "read"]
    assert levels_of(folder)[0]["absent_tiles"] == 1
    pyramid, slide = Pyramid(folder / "pyramid.ome.zarr"), SourceSlide("s", source)
    assert (pyramid.read(Box(512, 256, 256, 256), 0) == 255).all()
    box = Box(256, 256, 256, 256)
    assert np.abs(pyramid.read(box, 1).astype(int) - slide.read(box, 1)).mean() < 3
    assert "abc" not in (folder / "pyramid.json").read_text()


def test_ome_tiff_is_copied_and_its_coarser_levels_are_computed(tmp_path: Path) -> None:
    source, picture = tmp_path / "s.ome.tif", tissue_picture(2300, 2100)
    with tifffile.TiffWriter(source, ome=True) as tiff:
        options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg"}
        options |= {"compressionargs": {"level": 90}, "resolutionunit": 3}
        tiff.write(picture, subifds=1, resolution=(20000, 20000), metadata={"axes": "YXS"}, **options)
        tiff.write(picture[::2, ::2], subfiletype=1, resolution=(10000, 10000), **options)
    folder = converted(tmp_path, source)
    # OpenSlide ignores levels in sub-IFDs.
    assert methods(folder) == ["copied", "copied", "halved"]
    assert_same_pixels(source, folder)


def test_a_level_that_differs_from_openslide_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    read = SourceSlide.read
    monkeypatch.setattr(SourceSlide, "read", lambda self, box, level: read(self, box, level) // 2)
    folder = converted(tmp_path, source)
    assert set(methods(folder)) == {"read"}
    assert levels_of(folder)[0]["mean_difference"] < 3


def test_tiles_that_cannot_be_compared_are_no_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the slide or the tile cannot be read: the level is read, which names what is damaged."""
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    with closing(SourceSlide("s1", source, 0.5)) as slide, TiledTiff(source, slide.pages) as tiff:
        (page,) = tiff.levels(slide.metadata.levels[0])
        assert passthrough.tiles_match_source(slide, tiff, page, 0)
        damage = ValueError("of no use")
        with monkeypatch.context() as patch:
            patch.setattr(TiledTiff, "read", lambda *given: [damage] * len(given[-1]))
            assert not passthrough.tiles_match_source(slide, tiff, page, 0)
        assert "s1: level 0 is read, not copied: none of 8 tiles could be compared with it (of no use)" in caplog.text

        def unreadable(self: SourceSlide, box: Box, level: int) -> np.ndarray:
            raise self.error("damaged", "")

        monkeypatch.setattr(SourceSlide, "read", unreadable)
        assert not passthrough.tiles_match_source(slide, tiff, page, 0)


def changed_chunk(self: Level, column: int, row: int, real: Callable[[Level, int, int], np.ndarray]) -> np.ndarray:
    return real(self, column, row) // 2 if (column, row) == (3, 2) else real(self, column, row)


@pytest.mark.parametrize("passthrough", [True, False])
def test_a_store_that_differs_from_openslide_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passthrough: bool
) -> None:
    source, real = write_tiff(tmp_path / "s.tif", tissue_picture()), Level.chunk
    monkeypatch.setattr(Level, "chunk", lambda self, c, r: changed_chunk(self, c, r, real))
    options = ConvertRun(verify="all", chunk_px=256, shard_px=1024, passthrough=passthrough)
    with pytest.raises(SlideError, match="tile at level 0, column 3, row 2 of the store differs from OpenSlide's"):
        outputs = convert.Outputs(tmp_path / "s1" / "p.ome.zarr", tmp_path / "s1" / "p.json")
        convert.run("s1", convert.Inputs(source), outputs, options)
    assert list((tmp_path / "s1").iterdir()) == []


@pytest.mark.parametrize("passthrough", [True, False])
def test_all_tiles_are_compared_with_verify_all(tmp_path: Path, passthrough: bool) -> None:
    picture = tissue_picture(1599, 1201)
    source = write_pages(tmp_path / "s.tif", [picture, np.ascontiguousarray(picture[::2, ::2])])
    options = ConvertRun(verify="all", chunk_px=256, shard_px=1024, passthrough=passthrough)
    folder = tmp_path / "s1"
    outputs = convert.Outputs(folder / "pyramid.ome.zarr", folder / "pyramid.json")
    convert.run("s1", convert.Inputs(source), outputs, options)
    assert [level["compared_tiles"] for level in levels_of(folder)] == [35, 12]
    assert methods(folder) == ["copied" if passthrough else "read"] * 2


def test_text_inside_the_streams_is_not_copied(tmp_path: Path) -> None:
    """A page of one tile with a comment and Exif in its stream, and a comment in its tables."""
    picture = tissue_picture(512, 512)
    whole = imagecodecs.jpeg8_encode(picture, 90)
    text = b"\xff\xfe\0\x0aDoe,Jane" + b"\xff\xe1\0\x0a1.1.1970"
    assert whole[2:4] == b"\xff\xe0"
    stream = whole[:20] + text + whole[20:]
    source = tmp_path / "s.tif"
    tifffile.imwrite(
        source,
        iter([stream]),
        shape=picture.shape,
        dtype="uint8",
        tile=(512, 512),
        photometric="ycbcr",
        compression="jpeg",
        subsampling=(2, 2),
        resolution=(20000, 20000),
        resolutionunit=3,
    )
    assert b"Doe,Jane" in source.read_bytes()
    folder = converted(tmp_path, source)
    assert methods(folder) == ["copied"]
    assert_same_pixels(source, folder)
    stored = Pyramid(folder / "pyramid.ome.zarr").levels[0].stream(0, 0)
    assert stored == whole
    assert strip_metadata(b"\xff\xd8" + text + b"\xff\xdb\0\4xx\xff\xd9") == b"\xff\xd8\xff\xdb\0\4xx\xff\xd9"


def test_an_invalid_tiff_has_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0" + b"\xff" * 50)
    assert read_pages(path) == []


@needs_data
@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("slides/CMU-1-Small-Region.svs", 1),
        pytest.param("slides/minerva-crc-he-17408x14340.tif", 8, marks=pytest.mark.slow),
        ("camelyon16-level7/tumor_102_level7.tif", 5),
        ("camelyon16-level7/tumor_072_level7.tif", None),
    ],
)
def test_real_slides_are_copied_and_all_tiles_match_openslide(tmp_path: Path, name: str, copied: int | None) -> None:
    source = DATA / name
    options = ConvertRun(verify="all")
    outputs = convert.Outputs(tmp_path / "pyramid.ome.zarr", tmp_path / "pyramid.json")
    convert.run("s", convert.Inputs(source), outputs, options, threads=2)
    levels = levels_of(tmp_path)
    with openslide.OpenSlide(source) as slide:
        assert methods(tmp_path)[: slide.level_count] == ["copied"] * slide.level_count
        assert copied in (None, slide.level_count)
    for level in levels:
        if level["method"] == "copied":
            columns, rows = -(-level["width"] // level["tile"][0]), -(-level["height"] // level["tile"][1])
            assert level["compared_tiles"] == columns * rows
    stored = sum(p.stat().st_size for p in (tmp_path / "pyramid.ome.zarr").rglob("*") if p.is_file())
    assert stored < 1.03 * source.stat().st_size + 200_000
