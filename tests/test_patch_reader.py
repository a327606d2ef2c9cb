"""PatchReader: the patches of a slide in shard order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from helpers.slides import tissue_picture, write_tiff
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.pyramid.patch_reader import PatchReader
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert

SIZE = 1900, 1500


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """0.5 um per pixel, chunks of 128 px, shards of 512 px."""
    out = tmp_path_factory.mktemp("reader")
    source = write_tiff(out / "s.tif", tissue_picture(*SIZE))
    options = ConvertRun(passthrough=False, chunk_px=128, shard_px=512)
    convert.run("s1", convert.Inputs(source), convert.Outputs(out / "p.ome.zarr", out / "p.json"), options)
    return Pyramid(out / "p.ome.zarr")


def corners(stride: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patch positions of a grid that covers the slide and reaches beyond its edges."""
    x, y = np.meshgrid(np.arange(first, SIZE[0], stride), np.arange(first, SIZE[1], stride))
    return x.ravel(), y.ravel()


def read(reader: PatchReader, start: int = 0, threads: int = 1, at_once: int = 7) -> np.ndarray:
    out = np.empty((len(reader) - start, *reader.shape), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        whole = list(pool.map(lambda k: reader.read(start + k, out[k : k + at_once]), range(0, len(out), at_once)))
    assert np.concatenate(whole).all()
    return out


@pytest.mark.parametrize(("mpp", "stride"), [(0.5, 96), (0.5, 40), (0.75, 150), (1.0, 70), (0.25, 100)])
def test_patches_equal_those_read_one_by_one(pyramid: Pyramid, mpp: float, stride: int) -> None:
    spec = pyramid.patch_spec(96, mpp, allow_upsampling=True)
    x, y = corners(stride, first=-110)
    reader = PatchReader(pyramid, spec, x, y)
    pixels = read(reader, threads=3)
    assert sorted(reader.order) == list(range(len(x)))
    for number in range(0, len(x), 5):
        k = reader.order[number]
        np.testing.assert_array_equal(pixels[number], pyramid.read_patch(int(x[k]), int(y[k]), spec))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("stride", [24, 96, 300])
def test_each_chunk_is_decoded_once(pyramid: Pyramid, stride: int, threads: int) -> None:
    spec = pyramid.patch_spec(96, 0.5)
    x, y = corners(stride)
    reader = PatchReader(pyramid, spec, x, y)
    touched = {(column, row) for left, top in zip(x, y, strict=True) for column, row in chunks(left, top)}
    read(reader, threads=threads)
    assert reader.chunks_decoded == reader.chunks_needed == len(touched)
    assert reader.cached_bytes == 0


def chunks(left: int, top: int) -> list[tuple[int, int]]:
    columns = range(left // 128, -(-min(left + 96, SIZE[0]) // 128))
    return [(column, row) for column in columns for row in range(top // 128, -(-min(top + 96, SIZE[1]) // 128))]


def test_patches_are_ordered_by_stripe_and_column(pyramid: Pyramid) -> None:
    x, y = corners(96)
    reader = PatchReader(pyramid, pyramid.patch_spec(96, 0.5), x, y)
    stripe = y[reader.order] // 512
    assert (np.diff(stripe) >= 0).all()
    assert (np.diff(x[reader.order])[np.diff(stripe) == 0] >= 0).all()


def test_the_cache_is_bounded_by_a_stripe(pyramid: Pyramid) -> None:
    """The cache holds at most two columns of chunks and the row of chunks shared by two stripes."""
    x, y = corners(24)
    reader = PatchReader(pyramid, pyramid.patch_spec(96, 0.5), x, y)
    out = np.empty((1, *reader.shape), np.uint8)
    most = 0
    for number in range(len(reader)):
        reader.read(number, out)
        most = max(most, reader.cached_bytes)
    chunk, row = 128 * 128 * 3, -(-SIZE[0] // 128)
    assert most <= chunk * (2 * (4 + 1) + row + 1)


def test_reading_may_start_in_the_middle_or_with_a_small_cache(pyramid: Pyramid) -> None:
    spec = pyramid.patch_spec(96, 0.5)
    x, y = corners(40)
    whole = read(PatchReader(pyramid, spec, x, y))
    late = PatchReader(pyramid, spec, x, y, start=700)
    np.testing.assert_array_equal(read(late, 700), whole[700:])
    assert late.cached_bytes == 0
    small = PatchReader(pyramid, spec, x, y, cache_bytes=6 * 128 * 128 * 3)
    np.testing.assert_array_equal(read(small, threads=2), whole)
    assert small.chunks_decoded > late.chunks_decoded
    assert small.cached_bytes == 0


def test_the_transform_is_applied_to_patches(pyramid: Pyramid) -> None:
    spec = pyramid.patch_spec(96, 0.5)
    x, y = corners(200)
    plain = PatchReader(pyramid, spec, x, y)
    turned = PatchReader(pyramid, spec, x, y, transform=lambda pixels: 255 - pixels)
    np.testing.assert_array_equal(read(turned), 255 - read(plain))
