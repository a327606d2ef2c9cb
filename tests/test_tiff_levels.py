"""Which pages of a TIFF file are the slide, and their pixels. `fuzz_kinds.py` combines many more layouts."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import pyvips
import tifffile

from helpers.paths import DATA, needs_data
from helpers.slides import tissue_picture, write_tiff
from helpers.tiff import drop_tile, philips, write_pages
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.slides.tiff_pages import read_pages
from wsi_pipeline.stages import convert

APERIO = "Aperio Image Library v10\r\n1601x1201 (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
SCALE: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": 3}
TILES: dict[str, Any] = {"photometric": "rgb", "metadata": None, "tile": (256, 256), "compression": "deflate", **SCALE}


def label_picture(width: int = 400, height: int = 300) -> np.ndarray:
    """White with a black bar, which stands for a name."""
    label = np.full((height, width, 3), 255, np.uint8)
    label[height // 3 : height // 2, width // 8 : -width // 8] = 10
    return label


def write_in_order(path: Path, *pages: tuple[np.ndarray, dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for pixels, more in pages:
            tiff.write(pixels, **{**TILES, **more})
    return path


def whole(slide: SourceSlide, level: int = 0) -> np.ndarray:
    size = slide.metadata.levels[level]
    return slide.read(Box(0, 0, size.width, size.height), level)


def convert_all(folder: Path, source: Path) -> list[dict[str, Any]]:
    """The levels of a slide converted without loss, of which every tile is compared."""
    options = ConvertRun(codec="zstd", chunk_px=256, shard_px=1024, verify="all")
    convert.run("s", convert.Inputs(source), convert.Outputs(folder / "p.ome.zarr", folder / "p.json"), options)
    levels: list[dict[str, Any]] = json.loads((folder / "p.json").read_text())["levels"]
    return levels


STRIPS = {"tile": None, "rowsperstrip": 16}


@pytest.mark.parametrize(
    "label",
    [
        {"subfiletype": 1, **STRIPS},
        {"subfiletype": 1},
        {"description": "label 400x300"},
        {"description": "made by a scanner\nMacro"},
        {"extratags": [(285, 2, 0, "Overview", True)]},
        {"subfiletype": 9},
    ],
)
def test_a_label_or_macro_image_before_the_slide_is_not_the_slide(tmp_path: Path, label: dict[str, Any]) -> None:
    picture = tissue_picture()
    # It has the aspect ratio of the slide, so its size could be that of a level.
    source = write_in_order(tmp_path / "s.tif", (label_picture(), label), (picture, {}))
    slide = SourceSlide("s", source)
    assert slide.metadata.levels == (Size(1600, 1200),)
    assert slide.metadata.mpp == pytest.approx(0.5)
    np.testing.assert_array_equal(whole(slide), picture)


@pytest.mark.parametrize(
    ("other", "first", "problem"),
    [
        (label_picture(), True, r"page 1 \(400 x 300 px\) and page 2 \(1600 x 1200 px\) show different images"),
        (tissue_picture(1300, 1100), False, r"page 1 \(1600 x 1200 px\) and page 2 \(1300 x 1100 px\) show different"),
        (tissue_picture(1600, 1200)[::-1], False, r"page 1 .* and page 2 .* have the same size: channels"),
    ],
)
def test_files_in_which_each_of_two_pages_may_be_the_slide_are_refused(
    tmp_path: Path, other: np.ndarray, first: bool, problem: str
) -> None:
    pages = [(other, {}), (tissue_picture(), {})]
    source = write_in_order(tmp_path / "s.tif", *(pages if first else pages[::-1]))
    with pytest.raises(SlideError, match=rf"slide s: .*s\.tif: {problem}.*vips copy"):
        SourceSlide("s", source)


@pytest.mark.parametrize("reduced", [1, 0])
def test_a_pyramid_stored_smallest_first_is_read_largest_first(tmp_path: Path, reduced: int) -> None:
    picture = tissue_picture()
    levels = [np.ascontiguousarray(picture[:: 2**k, :: 2**k]) for k in (0, 1, 2)]
    pages = [
        (level, {"resolution": (20000 / 2**k,) * 2, "subfiletype": reduced if k else 0})
        for k, level in reversed(list(enumerate(levels)))
    ]
    slide = SourceSlide("s", write_in_order(tmp_path / "s.tif", *pages))
    assert slide.metadata.mpp == pytest.approx(0.5)
    assert slide.metadata.levels == (Size(1600, 1200), Size(800, 600), Size(400, 300))
    for number, level in enumerate(levels):
        np.testing.assert_array_equal(whole(slide, number), level)


def test_a_reduced_page_that_shows_something_else_is_no_level(tmp_path: Path) -> None:
    picture = tissue_picture()
    other = np.ascontiguousarray(picture[::-2, ::-2]) // 2
    source = write_in_order(tmp_path / "s.tif", (picture, {}), (other, {"subfiletype": 1}))
    assert SourceSlide("s", source).metadata.levels == (Size(1600, 1200),)


def test_missing_tiles_of_level_0_hide_nothing_of_other_levels(tmp_path: Path) -> None:
    """OpenSlide takes the tiles of level 0 for the bounds of such a file."""
    picture = np.full((1024, 1024, 3), 120, np.uint8)
    source = write_in_order(tmp_path / "s.tif", (picture, {}), (picture[::2, ::2].copy(), {"subfiletype": 1}))
    for index in range(3, 16, 4):
        drop_tile(source, 0, index)
    slide = SourceSlide("s", source)
    assert slide.metadata.bounds == Box(0, 0, 768, 1024)
    assert (whole(slide)[:, 768:] == 255).all()
    assert (whole(slide, 1) == 120).all()


@pytest.mark.parametrize("orientation", [2, 3, 6])
@pytest.mark.parametrize("description", [None, APERIO])
def test_turned_pages_are_refused(tmp_path: Path, orientation: int, description: str | None) -> None:
    turned = {"extratags": [(274, 3, 1, orientation, True)], "description": description}
    source = write_in_order(tmp_path / "s.tif", (tissue_picture(), turned))
    with pytest.raises(SlideError, match=rf"page 1 .* is turned or mirrored \(TIFF orientation {orientation}\)"):
        SourceSlide("s", source)


def run_vips(remedy: str, source: Path, target: Path) -> Path:
    """Run the first commands of a remedy with pyvips, for samples of 16 bits, and return the file that they write."""
    options: dict[str, Any] = {
        "--uchar": {"uchar": True},
        "--n": {"n": 3},
        "--interpretation": {"interpretation": "srgb"},
    }
    temporary = None
    for command in re.split(" && ", remedy[remedy.index("vips ") :])[:2]:
        words = shlex.split(re.split(", where|; else", command)[0].replace(" F ", f" {1 / 257} "))
        _, name, inputs, output, *more = (word.replace("SLIDE", str(source)) for word in words)
        flags = [more.index(word) for word in more if word.startswith("--")]
        given = {key: value for at in flags for key, value in options[more[at]].items()}
        positional = [float(word) if word[0].isdigit() else word for word in more[: min(flags, default=len(more))]]
        images = [pyvips.Image.new_from_file(word) for word in inputs.split()] if temporary is None else [temporary]
        if name == "tiffload":
            temporary = pyvips.Image.tiffload(inputs)
        else:
            temporary = pyvips.Operation.call(name, images if name == "bandjoin" else images[0], *positional, **given)
        if output.startswith("NEW.tif"):
            temporary.write_to_file(f"{target}{output.removeprefix('NEW.tif')}")
    return target


def cmyk(rgb: np.ndarray) -> np.ndarray:
    return np.concatenate((255 - rgb, np.zeros_like(rgb[..., :1])), axis=2)


REFUSED: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "mirrored": ({"extratags": [(274, 3, 1, 2, True)]}, np.copy, np.fliplr),
    "upside down": ({"extratags": [(274, 3, 1, 3, True)], "description": APERIO}, np.copy, lambda rgb: rgb[::-1, ::-1]),
    "turned": ({"extratags": [(274, 3, 1, 6, True)]}, np.copy, lambda rgb: np.rot90(rgb, -1)),
    "16 bits": ({}, lambda rgb: rgb.astype(np.uint16) * 257, np.copy),
    "CMYK": ({"photometric": "separated"}, cmyk, np.copy),
    "fourth channel": ({"extrasamples": ["unspecified"]}, lambda rgb: np.dstack((rgb, rgb[..., 0])), np.copy),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_remedy_of_a_refused_layout_makes_it_readable(tmp_path: Path, kind: str) -> None:
    more, stored, wanted = REFUSED[kind]
    source = write_in_order(tmp_path / "s.tif", (stored(tissue_picture()), more))
    with pytest.raises(SlideError, match=r"page 1 \(1600 x 1200 px\)") as caught:
        SourceSlide("s", source)
    slide = SourceSlide("s", run_vips(caught.value.remedy, source, tmp_path / "new.tif"))
    # CMYK has no exact RGB: it depends on the profile of the ink.
    difference = np.abs(whole(slide).astype(int) - wanted(tissue_picture())).mean()
    assert difference < (12 if kind == "CMYK" else 1)
    assert slide.metadata.mpp == pytest.approx(0.5)
    assert len(slide.metadata.levels) > 1


def test_the_remedy_for_channels_in_pages_joins_them(tmp_path: Path) -> None:
    picture = tissue_picture()
    channels = [(np.ascontiguousarray(picture[..., k]), {"photometric": "minisblack"}) for k in range(3)]
    source = write_in_order(tmp_path / "s.tif", *channels)
    with pytest.raises(SlideError, match=r"page 1 .*, page 2 .* and page 3 .* have the same size") as caught:
        SourceSlide("s", source)
    slide = SourceSlide("s", run_vips(caught.value.remedy, source, tmp_path / "new.tif"))
    assert np.abs(whole(slide).astype(int) - picture).mean() < 1


@pytest.mark.parametrize("unit", ["micron", "um", "µm", "\\u00B5m", "cm", "pixel"])
def test_the_scale_of_imagej_is_read(tmp_path: Path, unit: str) -> None:
    per_unit = 20_000.0 if unit == "cm" else 2.0
    source = tmp_path / "s.tif"
    metadata = {"unit": unit.replace("µ", "\\u00B5")} if unit != "pixel" else None
    tifffile.imwrite(source, tissue_picture(), imagej=True, resolution=(per_unit, per_unit), metadata=metadata)
    if unit == "pixel":
        with pytest.raises(SlideError, match="Set the sheet's column mpp"):
            SourceSlide("s", source)
    else:
        assert SourceSlide("s", source).metadata.mpp == pytest.approx(0.5)


@pytest.mark.parametrize("compression", ["zstd", "webp", "lzw", "jpeg", "packbits"])
@pytest.mark.parametrize("rows", [16, 1200])
def test_strips_of_any_codec_are_read(tmp_path: Path, compression: str, rows: int) -> None:
    lossless = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    how = {"compression": compression, "tile": None, "rowsperstrip": rows, **lossless}
    source = write_in_order(tmp_path / "s.tif", (tissue_picture(), how))
    slide = SourceSlide("s", source)
    np.testing.assert_array_equal(whole(slide), tifffile.imread(source))
    np.testing.assert_array_equal(slide.read(Box(301, 55, 200, 700), 0), tifffile.imread(source)[55:755, 301:501])


def test_the_scale_of_ome_xml_is_read(tmp_path: Path) -> None:
    source = tmp_path / "s.ome.tif"
    metadata = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}
    with tifffile.TiffWriter(source, ome=True) as tiff:
        tiff.write(tissue_picture(), photometric="rgb", tile=(256, 256), compression="jpeg", metadata=metadata)
    assert SourceSlide("s", source).metadata.mpp == pytest.approx(0.5)
    # Tags that contradict it are those of a program that knows no scale, such as 72 dpi.
    with tifffile.TiffWriter(source, ome=True) as tiff:
        tiff.write(tissue_picture(), photometric="rgb", tile=(256, 256), metadata=metadata, resolution=(72, 72))
    assert SourceSlide("s", source).metadata.mpp == pytest.approx(0.5)


def test_a_broken_chain_of_pages_is_not_a_shorter_file(tmp_path: Path) -> None:
    picture = tissue_picture()
    source = write_in_order(tmp_path / "s.tif", (picture, {}), (picture[::2, ::2].copy(), {"subfiletype": 1}))
    with tifffile.TiffFile(source) as tiff:
        start = tiff.pages[1].offset
    assert len(read_pages(source)) == 2
    with source.open("r+b") as file:
        file.truncate(start)
    assert read_pages(source) == []
    with pytest.raises(SlideError, match="not a slide that OpenSlide can read"):
        SourceSlide("s", source)


@pytest.mark.parametrize("description", [None, APERIO])
@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_levels_at_a_factor_that_is_not_whole_keep_their_own_pixels(
    tmp_path: Path, description: str | None, compression: str
) -> None:
    """OpenSlide interpolates there: its pixels differ from the page's by tens of grey values."""
    picture = tissue_picture(1601, 1201)
    pages = [picture, np.ascontiguousarray(picture[:1200:2, :1600:2])]
    how = {"compression": compression}
    first = {**how, "description": description}
    source = write_in_order(tmp_path / "s.tif", (pages[0], first), (pages[1], {**how, "subfiletype": 1}))
    first_level, second_level = convert_all(tmp_path / "out", source)[:2]
    assert second_level["method"] == ("copied" if compression == "jpeg" else "read")
    assert second_level["compared_tiles"] == 12
    pyramid = Pyramid(tmp_path / "out" / "p.ome.zarr")
    for number, level in enumerate((first_level, second_level)):
        stored = pyramid.read(Box(0, 0, level["width"], level["height"]), number)
        np.testing.assert_array_equal(stored, tifffile.imread(source, key=number))


@pytest.mark.parametrize("different", [True, False])
def test_philips_levels_of_one_padded_size_are_told_apart_by_their_content(tmp_path: Path, different: bool) -> None:
    """Levels of 384 x 320 and 192 x 160 px, both in pages of 512 x 512 px: their sizes do not tell which is which."""
    picture = tissue_picture(1536, 1280)
    pages = [np.full((1280, 1536, 3), 255, np.uint8), np.full((768, 768, 3), 255, np.uint8)]
    pages += [np.full((512, 512, 3), 255, np.uint8) for _ in range(2)]
    if different:
        for k, page in enumerate(pages):
            page[: 1280 >> k, : 1536 >> k] = picture[:: 2**k, :: 2**k]
    source = write_pages(tmp_path / "s.tif", pages, **philips(4))
    levels = convert_all(tmp_path / "out", source)
    assert [(level["width"], level["height"]) for level in levels] == [(1536, 1280), (768, 640), (384, 320), (192, 160)]
    # Where both pages fit, neither is copied.
    assert [level["method"] for level in levels][2] == ("copied" if different else "read")
    slide, pyramid = SourceSlide("s", source), Pyramid(tmp_path / "out" / "p.ome.zarr")
    for number, level in enumerate(levels):
        box = Box(0, 0, level["width"], level["height"])
        np.testing.assert_array_equal(pyramid.read(box, number), slide.read(box, number))


@pytest.mark.parametrize("tail", [bytes(1), bytes(400), b"\xff" * 40, b"rest\0" * 9])
def test_bytes_behind_the_end_of_a_jpeg_tile_are_left_out(tmp_path: Path, tail: bytes) -> None:
    picture = tissue_picture(512, 512)
    plain, padded = tmp_path / "plain.tif", tmp_path / "padded.tif"
    tiles = [
        imagecodecs.jpeg8_encode(np.ascontiguousarray(picture[y : y + 256, x : x + 256]), 90)
        for y in (0, 256)
        for x in (0, 256)
    ]
    for path, end in ((plain, b""), (padded, tail)):
        streams = iter([tile + end for tile in tiles])
        how = {**TILES, "photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}
        tifffile.imwrite(path, streams, shape=picture.shape, dtype="uint8", **how)
        assert [level["method"] for level in convert_all(tmp_path / path.stem, path)] == ["copied"]
    stores = [Pyramid(tmp_path / name / "p.ome.zarr").levels[0] for name in ("plain", "padded")]
    for tile in ((0, 0), (1, 0), (0, 1), (1, 1)):
        assert stores[0].stream(*tile) == stores[1].stream(*tile)


def test_a_difference_at_the_last_pixel_of_a_level_prevents_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real = write_tiff(tmp_path / "s.tif", tissue_picture(2300, 2100)), SourceSlide.read

    def read(self: SourceSlide, box: Box, level: int) -> np.ndarray:
        pixels = real(self, box, level).copy()
        size = self.metadata.levels[level]
        if level == 1 and (box.right, box.bottom) == (size.width, size.height):
            pixels[-1, -1] //= 2
        return pixels

    monkeypatch.setattr(SourceSlide, "read", read)
    assert [level["method"] for level in convert_all(tmp_path / "out", source)][:3] == ["copied", "read", "copied"]


@needs_data
def test_a_real_ndpi_is_read(tmp_path: Path) -> None:
    """Its JPEG streams of one image each have restart intervals, which tifffile presents as tiles."""
    source = DATA / "slides" / "fluorescence-dapi-3968x4864.ndpi"
    options = ConvertRun()
    convert.run("s", convert.Inputs(source), convert.Outputs(tmp_path / "p.ome.zarr", tmp_path / "p.json"), options)
    receipt = json.loads((tmp_path / "p.json").read_text())
    assert receipt["vendor"] == "hamamatsu"
    assert [level["method"] for level in receipt["levels"]] == ["read"] * 7
    assert receipt["mpp"] == pytest.approx(0.228, abs=1e-3)
