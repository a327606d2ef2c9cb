from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openslide
import PIL.Image
import pytest
import tifffile
import zarr

from helpers.paths import DATA, needs_data
from helpers.slides import converted, tissue_picture, write_tiff
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.io.digests import digest_tree
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.pyramid.reencode import downsample
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.stages import convert

LOSSLESS = ConvertRun(codec="zstd", chunk_px=256, shard_px=1024)


def convert_with(folder: Path, source: Path, options: ConvertRun, mpp: float | None = None) -> Path:
    outputs = convert.Outputs(folder / "pyramid.ome.zarr", folder / "pyramid.json")
    convert.run("s1", convert.Inputs(source), outputs, options, mpp=mpp, threads=2)
    return folder


def receipt_of(folder: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads((folder / "pyramid.json").read_text())
    return receipt


def assert_lossless(folder: Path, source: Path, mpp: float | None = None) -> None:
    """Assert that the store has OpenSlide's pixels at every level of the slide."""
    pyramid, slide = Pyramid(folder / "pyramid.ome.zarr"), SourceSlide("s", source, mpp)
    for level, size in enumerate(slide.metadata.levels):
        box = Box(0, 0, size.width, size.height)
        np.testing.assert_array_equal(pyramid.read(box, level), slide.read(box, level))


def write_plain(path: Path, rgb: np.ndarray, **more: Any) -> Path:
    tifffile.imwrite(path, rgb, photometric="rgb", resolution=(20000, 20000), resolutionunit=3, **more)
    return path


@pytest.mark.parametrize(
    "how",
    [
        {"tile": (256, 256), "compression": "deflate"},
        {"tile": (256, 256), "compression": "lzw"},
        {"tile": (256, 256)},
    ],
)
def test_slides_without_jpeg_tiles_are_lossless_with_zstd(tmp_path: Path, how: dict[str, Any]) -> None:
    source = write_plain(tmp_path / "s.tif", tissue_picture(1700, 1100), **how)
    folder = convert_with(tmp_path / "s1", source, LOSSLESS)
    assert [level["method"] for level in receipt_of(folder)["levels"]] == ["read", "halved"]
    assert receipt_of(folder)["levels"][0]["largest_difference"] == 0
    assert_lossless(folder, source)


def test_jpeg_2000_tiles_of_aperio_are_read(tmp_path: Path) -> None:
    description = "Aperio Image Library v10\r\n1700x1100 (256x256) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.5"
    source = write_plain(
        tmp_path / "s.svs",
        tissue_picture(1700, 1100),
        tile=(256, 256),
        compression="aperio_jp2000_rgb",
        description=description,
        metadata=None,
    )
    folder = convert_with(tmp_path / "s1", source, LOSSLESS)
    assert receipt_of(folder)["vendor"] == "aperio"
    assert receipt_of(folder)["objective_power"] == "20"
    assert receipt_of(folder)["levels"][0]["method"] == "read"
    assert_lossless(folder, source)


@pytest.mark.parametrize("compression", ["deflate", "lzw", None])
@pytest.mark.parametrize("kind", ["rgb", "grey"])
def test_stripped_tiffs_are_read(tmp_path: Path, compression: str | None, kind: str) -> None:
    picture = tissue_picture(1700, 1100)
    stored = picture if kind == "rgb" else picture[..., 0]
    source = tmp_path / "s.tif"
    tifffile.imwrite(
        source,
        stored,
        photometric="rgb" if kind == "rgb" else "minisblack",
        rowsperstrip=16,
        compression=compression,
        resolution=(20000, 20000),
        resolutionunit=3,
    )
    folder = convert_with(tmp_path / "s1", source, LOSSLESS.model_copy(update={"verify": "all"}))
    receipt = receipt_of(folder)
    assert (receipt["vendor"], receipt["mpp"]) == ("generic-tiff", pytest.approx(0.5))
    assert [level["method"] for level in receipt["levels"]] == ["read", "halved"]
    wanted = picture if kind == "rgb" else np.repeat(stored[..., None], 3, axis=2)
    np.testing.assert_array_equal(Pyramid(folder / "pyramid.ome.zarr").read(Box(0, 0, 1700, 1100), 0), wanted)


def test_truncated_unscaled_or_16_bit_stripped_tiffs_are_refused(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "s.tif", tissue_picture(1700, 1100), rowsperstrip=16, compression="deflate")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(SlideError, match=r"slide s1: .*damaged at level 0"):
        convert_with(tmp_path / "s1", source, LOSSLESS)
    tifffile.imwrite(source, tissue_picture(1700, 1100), photometric="rgb", rowsperstrip=16)
    with pytest.raises(SlideError, match="Set the sheet's column mpp"):
        convert_with(tmp_path / "s1", source, LOSSLESS)
    tifffile.imwrite(source, tissue_picture(1700, 1100).astype(np.uint16), photometric="rgb", rowsperstrip=16)
    with pytest.raises(SlideError, match=r"page 1 \(1700 x 1100 px\) has 16 bits per sample. Reduce it to 8 bits"):
        convert_with(tmp_path / "s1", source, LOSSLESS)


@pytest.mark.parametrize(("subsampling", "quality", "mean"), [("444", 98, 1.5), ("444", 90, 3.5), ("420", 90, 6)])
def test_the_jpeg_error_is_bounded_by_quality_and_subsampling(
    tmp_path: Path, subsampling: Any, quality: int, mean: float
) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture(1700, 1100), compression="deflate")
    options = ConvertRun(chunk_px=256, shard_px=1024, subsampling=subsampling, quality=quality, verify="all")
    folder = convert_with(tmp_path / "s1", source, options)
    pyramid, slide = Pyramid(folder / "pyramid.ome.zarr"), SourceSlide("s", source)
    size = pyramid.size
    box = Box(0, 0, size.width, size.height)
    difference = np.abs(pyramid.read(box, 0).astype(int) - slide.read(box, 0))
    level = receipt_of(folder)["levels"][0]
    assert level["compared_tiles"] == 35
    assert level["mean_difference"] == pytest.approx(difference.mean(), abs=1e-4)
    assert level["largest_difference"] == difference.max()
    assert difference.mean() < mean
    metadata = json.loads((folder / "pyramid.ome.zarr" / "0" / "zarr.json").read_text())
    configuration = metadata["codecs"][0]["configuration"]["codecs"][1]["configuration"]
    assert configuration == {
        "level": quality,
        "colorspace_data": "RGB",
        "colorspace_jpeg": "YCbCr",
        "subsampling": subsampling,
    }


def test_passthrough_off_reads_every_level(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture(1700, 1100))
    folder = convert_with(tmp_path / "s1", source, LOSSLESS.model_copy(update={"passthrough": False}))
    assert {level["method"] for level in receipt_of(folder)["levels"]} == {"read"}
    assert_lossless(folder, source)


def test_plain_zarr_reads_a_lossless_store(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "s.tif", tissue_picture(1700, 1100), tile=(256, 256))
    folder = convert_with(tmp_path / "s1", source, LOSSLESS)
    array = zarr.open_array(folder / "pyramid.ome.zarr" / "0", mode="r")
    pyramid = Pyramid(folder / "pyramid.ome.zarr")
    np.testing.assert_array_equal(np.asarray(array[...]).transpose(1, 2, 0), pyramid.read(Box(0, 0, 1700, 1100), 0))


def test_white_chunks_are_not_stored(tmp_path: Path) -> None:
    rgb = np.full((1024, 1024, 3), 255, np.uint8)
    rgb[300:400, 300:400] = 90
    source = write_plain(tmp_path / "s.tif", rgb, tile=(256, 256))
    level = receipt_of(convert_with(tmp_path / "s1", source, LOSSLESS))["levels"][0]
    assert (level["tiles"], level["absent_tiles"]) == (1, 15)
    assert_lossless(tmp_path / "s1", source)


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


def test_coarser_levels_are_added_to_a_slide_with_one_level(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (1301, 1205, 3), dtype=np.uint8)
    source = write_plain(tmp_path / "flat.tif", rgb, tile=(256, 256))
    pyramid = Pyramid(convert_with(tmp_path / "s1", source, LOSSLESS) / "pyramid.ome.zarr")
    assert pyramid.sizes == [Size(1205, 1301), Size(603, 651)]
    np.testing.assert_array_equal(pyramid.read(Box(0, 0, 603, 651), 1), downsample(rgb))
    assert pyramid.mpps == pytest.approx([0.5, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "first"), [(5000, 2600, 1), (1600, 1200, 0)])
def test_an_overview_gives_the_same_thumbnails_and_scale(tmp_path: Path, width: int, height: int, first: int) -> None:
    source = write_tiff(tmp_path / "a.tif", tissue_picture(width, height))
    store, overview = tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr"
    options = ConvertRun(chunk_px=256, shard_px=1024)
    convert.run("a", convert.Inputs(source), convert.Outputs(store, tmp_path / "a.json", overview), options)
    whole, coarse = Pyramid(store), Pyramid(overview)
    assert (coarse.mpp, coarse.size) == (whole.mpp, whole.size)
    assert coarse.mpps == whole.mpps[first:]
    for longest in (128, 1000, 2048):
        picture, mpp = coarse.thumbnail(longest)
        expected, expected_mpp = whole.thumbnail(longest)
        assert mpp == expected_mpp
        np.testing.assert_array_equal(picture, expected)
    # The transformations that any OME-Zarr reader uses.
    datasets = [
        json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"]
        for path in (store, overview)
    ]
    places = [[one["coordinateTransformations"] for one in part] for part in datasets]
    assert places[1] == places[0][first:]
    assert [one["path"] for one in datasets[1]] == [str(level) for level in range(len(coarse.mpps))]


def test_halving_takes_the_mean_and_repeats_odd_edges() -> None:
    pixels = np.zeros((3, 3, 3), np.uint8)
    pixels[..., 1] = [[0, 2, 10], [4, 6, 20], [7, 9, 30]]
    assert downsample(pixels)[..., 1].tolist() == [[3, 15], [8, 30]]
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    means = noise.reshape(100, 2, 150, 2, 3).mean(axis=(1, 3))
    assert np.abs(downsample(noise) - means).max() <= 1


def test_store_and_receipt_do_not_depend_on_threads_or_folder(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    receipts, stores = [], []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        outputs = convert.Outputs(folder / "p.ome.zarr", folder / "p.json")
        convert.run("s", convert.Inputs(source), outputs, ConvertRun(shard_px=512), threads=threads)
        receipts.append((folder / "p.json").read_bytes())
        stores.append(digest_tree(folder / "p.ome.zarr"))
    assert receipts[0] == receipts[1]
    assert stores[0] == stores[1]
    assert str(tmp_path) not in receipts[0].decode()


def test_transparent_pixels_are_on_white(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    slide = SourceSlide("s", write_tiff(tmp_path / "s.tif", tissue_picture()))
    half = Image.new("RGBA", (3, 1), (100, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    half.putpixel((2, 0), (200, 100, 150, 128))
    monkeypatch.setattr(slide._handle, "read_region", lambda *_: half)
    assert slide.read(Box(0, 0, 3, 1), 0).tolist() == [[[100, 0, 0], [255, 255, 255], [227, 177, 202]]]


@pytest.mark.parametrize("mpp", [None, 0.001])
def test_a_slide_without_usable_scale_names_the_sheet_column(tmp_path: Path, mpp: float | None) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture(400, 500), mpp)
    with pytest.raises(SlideError, match=r"slide s1: .*s\.tif: .*Set the sheet's column mpp"):
        converted(tmp_path, source)
    assert not (tmp_path / "s1" / "pyramid.ome.zarr").exists()
    pyramid = Pyramid(converted(tmp_path, source, mpp=0.25) / "pyramid.ome.zarr")
    assert pyramid.mpp == 0.25
    assert json.loads((tmp_path / "s1" / "pyramid.json").read_text())["mpp_source"] == "sheet"


class FractionalLevel:
    """A fake OpenSlide whose level 1 has a downsample factor that is not whole, and no page of a TIFF file."""

    level_dimensions = ((1000, 800), (333, 267), (250, 200))
    level_count = 3
    level_downsamples = (1.0, (1000 / 333 + 800 / 267) / 2, 4.0)
    properties: ClassVar = {"openslide.vendor": "dicom", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}

    def __init__(self, _: Path) -> None:
        pass

    def read_region(self, _: tuple[int, int], level: int, size: tuple[int, int]) -> PIL.Image.Image:
        return PIL.Image.new("RGBA", size, (200 + level, 100, 150, 255))

    def close(self) -> None:
        pass


def test_a_level_that_openslide_would_interpolate_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openslide.OpenSlide", FractionalLevel)
    (tmp_path / "s.dcm").write_bytes(b"slide")
    pyramid = Pyramid(convert_with(tmp_path / "s1", tmp_path / "s.dcm", LOSSLESS) / "pyramid.ome.zarr")
    assert pyramid.sizes == [Size(1000, 800), Size(250, 200)]
    assert pyramid.mpps == pytest.approx([0.25, 1.0])
    assert pyramid.read(Box(0, 0, 1, 1), 1).tolist() == [[[202, 100, 150]]]


@needs_data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "dicom"])
def test_real_slides_keep_their_pixels(tmp_path: Path, name: str) -> None:
    folder = DATA / "slides"
    source = folder / name if name != "dicom" else next((folder / "CMU-1-Small-Region-dicom").glob("*.dcm"))
    pyramid = Pyramid(converted(tmp_path, source) / "pyramid.ome.zarr")
    with openslide.OpenSlide(source) as slide:
        wanted = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    size = pyramid.size
    read = pyramid.read(Box(0, 0, size.width, size.height), 0)
    if name == "dicom":
        assert np.abs(read.astype(int) - wanted).mean() < 1.5
    else:
        np.testing.assert_array_equal(read, wanted)
    assert pyramid.mpp == pytest.approx(0.499)
    receipt = (tmp_path / "s1" / "pyramid.json").read_text()
    assert "2009" not in receipt
    assert "ScanScope" not in receipt


@needs_data
def test_dicom_and_svs_of_the_same_region_agree(tmp_path: Path) -> None:
    folder = DATA / "slides"
    svs = convert_with(tmp_path / "svs", folder / "CMU-1-Small-Region.svs", ConvertRun())
    dcm = next((folder / "CMU-1-Small-Region-dicom").glob("*.dcm"))
    dicom = convert_with(tmp_path / "dicom", dcm, ConvertRun(codec="zstd"))
    assert_lossless(svs, folder / "CMU-1-Small-Region.svs")
    assert_lossless(dicom, dcm)
    one, other = (Pyramid(f / "pyramid.ome.zarr") for f in (svs, dicom))
    assert one.size == other.size
    assert one.mpp == pytest.approx(other.mpp, rel=1e-3)
    box = Box(0, 0, one.size.width, one.size.height)
    # The DICOM file was re-encoded: OpenSlide's pixels of the two files differ by 2.9 on average.
    difference = one.read(box, 0).astype(int) - other.read(box, 0)
    assert np.abs(difference).mean() < 3
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.5
    assert receipt_of(dicom)["vendor"] == "dicom"
