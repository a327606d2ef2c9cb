from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import zarr
from conftest import DATA, converted, needs_data, tissue_picture, write_tiff

from wsi_pipeline.config import PyramidOptions
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.slides import SourceSlide
from wsi_pipeline.stages import convert
from wsi_pipeline.stages.convert import halve


def test_levels_are_the_slides_own_and_pixels_are_equal(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture(1700, 1100))
    pyramid = Pyramid(converted(tmp_path, source) / "pyramid.ome.zarr")
    with openslide.OpenSlide(source) as slide:
        assert [(s.width, s.height) for s in pyramid.sizes[: slide.level_count]] == list(slide.level_dimensions)
        for level, (width, height) in enumerate(slide.level_dimensions):
            wanted = np.asarray(slide.read_region((0, 0), level, (width, height)))[..., :3]
            np.testing.assert_array_equal(pyramid.read(Box(0, 0, width, height), level), wanted)
    assert pyramid.mpp == pytest.approx(0.5)


def test_the_store_is_valid_ome_zarr(tissue_slide: Path) -> None:
    from ome_zarr_models.v05.image import Image

    group = zarr.open_group(tissue_slide / "pyramid.ome.zarr", mode="r")
    image = Image.from_zarr(group)
    axes = image.ome_attributes.multiscales[0].axes
    assert [axis.name for axis in axes] == ["c", "y", "x"]
    assert [getattr(axis, "unit", None) for axis in axes] == [None, "micrometer", "micrometer"]
    scale, translation = image.ome_attributes.multiscales[0].datasets[1].coordinateTransformations
    assert scale.scale == pytest.approx([1, 1.0, 1.0])
    assert translation.translation == pytest.approx([0, 0.25, 0.25])
    assert group["0"].shards == (3, 1024, 1024)


def test_a_slide_with_one_level_gets_coarser_ones(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (1301, 1205, 3), dtype=np.uint8)
    source = tmp_path / "flat.tif"
    import tifffile

    tifffile.imwrite(source, rgb, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    pyramid = Pyramid(converted(tmp_path, source) / "pyramid.ome.zarr")
    assert pyramid.sizes == [Size(1205, 1301), Size(603, 651)]
    np.testing.assert_array_equal(pyramid.read(Box(0, 0, 603, 651), 1), halve(rgb))
    assert pyramid.mpps == pytest.approx([0.5, 1.0])


def test_halving_takes_the_mean_and_repeats_odd_edges() -> None:
    pixels = np.array([[[0], [2], [10]], [[4], [6], [20]], [[7], [9], [30]]], np.uint8)
    assert halve(pixels)[..., 0].tolist() == [[3, 15], [8, 30]]


def test_chunks_threads_and_reruns_leave_the_same_bytes(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    receipts = []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        convert.run("s", source, folder / "p.ome.zarr", folder / "p.json", PyramidOptions(shard_px=512), None, threads)
        receipts.append((folder / "p.json").read_bytes())
    assert receipts[0] == receipts[1]
    assert str(tmp_path) not in receipts[0].decode()


def test_transparent_pixels_take_the_background(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    slide = SourceSlide("s", write_tiff(tmp_path / "s.tif", tissue_picture()))
    half = Image.new("RGBA", (2, 1), (100, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    monkeypatch.setattr(slide._handle, "read_region", lambda *_: half)
    assert slide.read(Box(0, 0, 2, 1), 0).tolist() == [[[100, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mpp", [None, 0.001])
def test_a_slide_without_usable_scale_names_the_column(tmp_path: Path, mpp: float | None) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture(400, 500), mpp)
    with pytest.raises(SlideError, match=r"slide s1: .*s\.tif: .*Set the sheet's column mpp"):
        converted(tmp_path, source)
    assert not (tmp_path / "s1" / "pyramid.ome.zarr").exists()
    pyramid = Pyramid(converted(tmp_path, source, mpp=0.25) / "pyramid.ome.zarr")
    assert pyramid.mpp == 0.25
    assert json.loads((tmp_path / "s1" / "pyramid.json").read_text())["mpp_source"] == "sheet"


def test_files_that_are_no_slides_or_truncated_leave_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not a slide")
    whole = write_tiff(tmp_path / "whole.tif", tissue_picture(), compression="none").read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: len(whole) // 2])
    for source in (text, cut):
        with pytest.raises(SlideError) as caught:
            converted(tmp_path, source, slide="bad")
        assert "slide bad" in str(caught.value)
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert list((tmp_path / "bad").glob("*")) == [] if (tmp_path / "bad").exists() else True


def test_damaged_tiles_are_located(tmp_path: Path) -> None:
    import tifffile

    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    with tifffile.TiffFile(source) as tif:
        page = tif.pages.first
        offset, count = page.dataoffsets[5], page.databytecounts[5]
    data = bytearray(source.read_bytes())
    data[offset : offset + count] = b"\0" * count
    source.write_bytes(data)
    with pytest.raises(SlideError, match="damaged at level 0"):
        converted(tmp_path, source)


@needs_data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "dicom"])
def test_real_slides_keep_their_pixels(tmp_path: Path, name: str) -> None:
    folder = DATA / "slides"
    source = folder / name if name != "dicom" else next((folder / "CMU-1-Small-Region-dicom").glob("*.dcm"))
    pyramid = Pyramid(converted(tmp_path, source) / "pyramid.ome.zarr")
    with openslide.OpenSlide(source) as slide:
        wanted = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    size = pyramid.size
    np.testing.assert_array_equal(pyramid.read(Box(0, 0, size.width, size.height), 0), wanted)
    assert pyramid.mpp == pytest.approx(0.499)
    receipt = (tmp_path / "s1" / "pyramid.json").read_text()
    assert "2009" not in receipt
    assert "ScanScope" not in receipt
