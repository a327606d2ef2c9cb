from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.slides import converted, tissue_picture, write_tiff
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.pyramid.level import LruCache
from wsi_pipeline.pyramid.ome_zarr import Image, read_image, write_image
from wsi_pipeline.pyramid.patch_reader import PatchReader
from wsi_pipeline.pyramid.pyramid import Pyramid, level_for
from wsi_pipeline.pyramid.shards import ChunkGrid, Shard, write_shards
from wsi_pipeline.slides.jpeg import JpegCodec
from wsi_pipeline.stages import convert


@given(st.integers(-300, 1700), st.integers(-300, 1300), st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_is_a_crop_of_the_padded_slide(tissue_pyramid: Pyramid, x: int, y: int, w: int, h: int) -> None:
    size = tissue_pyramid.size
    whole = tissue_pyramid.read(Box(-300, -300, size.width + 900, size.height + 900), 0)
    np.testing.assert_array_equal(
        tissue_pyramid.read(Box(x, y, w, h), 0), whole[y + 300 : y + 300 + h, x + 300 : x + 300 + w]
    )
    assert (whole[:300] == 255).all()


def test_threads_and_pickled_copies_read_the_same(tissue_pyramid: Pyramid) -> None:
    boxes = [Box(97 * k, 61 * k, 200, 150) for k in range(12)]
    copy = pickle.loads(pickle.dumps(tissue_pyramid))  # noqa: S301
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda b: copy.read(b, 0), boxes))
    for box, pixels in zip(boxes, read, strict=True):
        np.testing.assert_array_equal(pixels, tissue_pyramid.read(box, 0))


@pytest.mark.parametrize(
    ("mpp", "level", "read_px", "real"),
    [
        (0.5, 0, 96, 0.5),
        (0.49, 0, 96, 0.5),
        (1.0, 1, 96, 1.0),
        (0.75, 0, 144, 0.75),
        (1.9, 1, 183, 1.9),
        (0.42, 0, 81, 0.42),
    ],
)
def test_patches_are_read_from_the_coarsest_sufficient_level(
    tissue_pyramid: Pyramid, mpp: float, level: int, read_px: int, real: float
) -> None:
    spec = tissue_pyramid.patch_spec(96, mpp)
    assert (spec.level, spec.read_px, spec.mpp) == (level, read_px, pytest.approx(real))
    assert spec.level0_px == pytest.approx(96 * real / 0.5)
    assert spec.factor == pytest.approx(tissue_pyramid.mpps[level] / real)
    assert tissue_pyramid.read_patch(100, 50, spec).shape == (96, 96, 3)


def test_patches_much_finer_than_the_slide_are_refused(tissue_pyramid: Pyramid) -> None:
    with pytest.raises(StoreError, match=r"0\.5 um per pixel, more than 20 % coarser than the requested 0\.41"):
        tissue_pyramid.patch_spec(96, 0.41)


def scene(x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
    """An image (y, x, 3) of waves of 3 to 7 um, at points in um."""
    x, y = np.meshgrid(2 * np.pi * x_um, 2 * np.pi * y_um)
    waves = (np.sin(x / 3 + y / 7), np.sin(y / 4), np.cos(x / 5 - y / 6))
    return np.stack([128 + 90 * wave for wave in waves], axis=-1)


def scanned(folder: Path, mpp: float) -> Pyramid:
    """The pyramid of a slide of the scene, whose pixels are the scene at their centres."""
    centres = [(np.arange(edge) + 0.5) * mpp for edge in (1400, 1200)]
    source = write_tiff(folder / "s.tif", np.rint(scene(*centres)).astype(np.uint8), mpp, compression="deflate")
    outputs = convert.Outputs(folder / "p.ome.zarr", folder / "p.json")
    convert.run("s1", convert.Inputs(source), outputs, ConvertRun(codec="zstd", chunk_px=256, shard_px=1024))
    return Pyramid(folder / "p.ome.zarr")


@pytest.mark.parametrize("slide_mpp", [0.25, 0.263158, 0.298, 0.2268, 0.21])
@pytest.mark.parametrize("size_px", [75, 299])
def test_patches_of_any_scanner_show_the_same_scene_at_the_scale_asked_for(
    tmp_path: Path, slide_mpp: float, size_px: int
) -> None:
    pyramid = scanned(tmp_path, slide_mpp)
    spec = pyramid.patch_spec(size_px, 0.25)
    assert (spec.mpp, spec.um) == pytest.approx((0.25, size_px * 0.25))
    assert spec.factor == pytest.approx(slide_mpp / 0.25)
    x, y = np.array([0, 313, 640]), np.array([7, 250, 111])
    reader = PatchReader(pyramid, spec, x, y)
    read = np.empty((3, size_px, size_px, 3), np.uint8)
    assert reader.read(0, read).all()
    for patch, k in zip(read, reader.order, strict=True):
        pixel_um = (np.arange(size_px) + 0.5) * 0.25
        wanted = scene(x[k] * slide_mpp + pixel_um, y[k] * slide_mpp + pixel_um)
        # The outermost pixels have neighbours on one side only.
        away = np.abs(patch - wanted)[2:-2, 2:-2]
        # Rounding to grey values twice, and the interpolation of waves of 10 px.
        assert away.max() < 4
        np.testing.assert_array_equal(patch, pyramid.read_patch(int(x[k]), int(y[k]), spec))


def test_a_patch_shows_its_position(tmp_path: Path) -> None:
    rgb = np.full((1024, 1024, 3), 255, np.uint8)
    rgb[512:768, 256:512] = (200, 0, 0)
    pyramid = Pyramid(converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb)) / "pyramid.ome.zarr")
    for mpp in (0.5, 0.7, 1.0, 2.0):
        spec = pyramid.patch_spec(round(128 / mpp), mpp)
        patch = pyramid.read_patch(256, 512, spec)
        assert np.abs(patch.mean(axis=(0, 1)) - (200, 0, 0)).max() < 6
        assert pyramid.read_patch(512, 512, spec).mean() > 245


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([0.3, 0.5, 0.8, 3.0, 8.0, 11.3]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scaled_reads_do_not_depend_on_boxes(tissue_pyramid: Pyramid, dx: int, dy: int, mpp: float) -> None:
    whole = tissue_pyramid.read_scaled(Box(0, 0, 95, 92), mpp)
    part = tissue_pyramid.read_scaled(Box(dx, dy, 95 - dx, 92 - dy), mpp)
    np.testing.assert_array_equal(part, whole[dy:, dx:])


def test_scaled_pixels_are_means(tissue_pyramid: Pyramid) -> None:
    at_4 = tissue_pyramid.read_scaled(Box(60, 60, 4, 4), 4.0)
    level = level_for(tissue_pyramid.mpps, 4.0)
    factor = round(4.0 / tissue_pyramid.mpps[level])
    fine = tissue_pyramid.read(Box(60 * factor, 60 * factor, 4 * factor, 4 * factor), level).astype(float)
    wanted = fine.reshape(4, factor, 4, factor, 3).mean(axis=(1, 3))
    assert np.abs(at_4 - wanted).max() <= 0.5


@given(st.integers(-20, 200), st.integers(-20, 200), st.sampled_from([0.13, 0.3, 0.35]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_upsampled_pixels_are_the_nearest(tissue_pyramid: Pyramid, x: int, y: int, mpp: float) -> None:
    found = tissue_pyramid.read_scaled(Box(400 + x, 300 + y, 40, 30), mpp)
    whole = tissue_pyramid.read(Box(0, 0, 500, 500), 0)
    centres = (np.arange(500) + 0.5) * tissue_pyramid.mpp
    rows, columns = (
        np.abs((np.arange(first, first + count) + 0.5)[:, None] * mpp - centres).argmin(axis=1)
        for first, count in ((300 + y, 30), (400 + x, 40))
    )
    np.testing.assert_array_equal(found, whole[np.ix_(rows, columns)])


def test_patches_of_a_coarser_level_begin_at_its_nearest_pixel(tissue_pyramid: Pyramid) -> None:
    spec = tissue_pyramid.patch_spec(96, 2.0)
    x, y = np.arange(300), np.arange(300)[::-1]
    assert spec.level == 2
    for asked, found in zip((x, y), tissue_pyramid.corners(x, y, spec), strict=True):
        away = np.abs(found * tissue_pyramid.mpps[2] - asked * tissue_pyramid.mpp)
        assert away.max() <= tissue_pyramid.mpps[2] / 2


def test_a_missing_pyramid_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not a pyramid .*Convert the slide again"):
        Pyramid(tmp_path / "nothing.ome.zarr")


def test_patches_read_together_equal_those_read_alone(tissue_pyramid: Pyramid) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(-100, 1700, 40).tolist(), rng.integers(-100, 1300, 40).tolist()
    for mpp in (0.5, 0.7, 1.0):
        spec = tissue_pyramid.patch_spec(96, mpp)
        wanted = np.stack([tissue_pyramid.read_patch(a, b, spec) for a, b in zip(x, y, strict=True)])
        np.testing.assert_array_equal(tissue_pyramid.read_patches(x, y, spec), wanted)
    assert tissue_pyramid.read_patches([], [], spec).shape == (0, 96, 96, 3)


def counted(monkeypatch: pytest.MonkeyPatch, name: str, owner: type) -> list[object]:
    """Record the first argument after self of each later call of a method."""
    calls: list[object] = []
    real = getattr(owner, name)

    def call(self: object, *arguments: object) -> object:
        calls.append(arguments[0])
        return real(self, *arguments)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_only_touched_chunks_are_decoded_and_indexes_are_read_once(
    tissue_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, opened = counted(monkeypatch, "decode", JpegCodec), counted(monkeypatch, "__init__", Shard)
    pyramid = Pyramid(tissue_slide / "pyramid.ome.zarr")
    pyramid.read(Box(300, 300, 100, 100), 0)
    assert (len(decoded), len(opened)) == (1, 1)
    pyramid.read(Box(300, 300, 300, 100), 0)
    assert (len(decoded), len(opened)) == (2, 1)
    # Shards of 1,024 px: a box over the corner of four of them.
    pyramid.read(Box(1000, 1000, 100, 100), 0)
    assert (len(decoded), len(opened)) == (6, 4)


def test_caches_are_bounded(tissue_slide: Path) -> None:
    pyramid = Pyramid(tissue_slide / "pyramid.ome.zarr", cache_bytes=5 * 256 * 256 * 3)
    (level, *_) = pyramid.levels
    wanted = Pyramid(tissue_slide / "pyramid.ome.zarr").read(Box(0, 0, 1600, 1200), 0)
    np.testing.assert_array_equal(pyramid.read(Box(0, 0, 1600, 1200), 0), wanted)
    assert len(level._chunks) == 5
    shards = LruCache[int](3)
    assert [shards.get(k, lambda k=k: k) for k in (1, 2, 3, 1, 4)] == [1, 2, 3, 1, 4]  # type: ignore[misc]
    assert shards.get(1, lambda: -1) == 1
    assert shards.get(2, lambda: -2) == -2
    assert len(shards) == 3


def test_a_fork_reads_while_a_thread_of_its_parent_holds_the_locks(tissue_slide: Path) -> None:
    pyramid = Pyramid(tissue_slide / "pyramid.ome.zarr")
    box = Box(100, 100, 300, 300)
    wanted = pyramid.read(box, 0)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with pyramid.levels[0]._chunks._lock, pyramid.levels[0]._shards._lock:
        with warnings.catch_warnings():
            # Python warns about forks of a process with threads, which is the case under test.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = context.Process(target=lambda: results.put(bool((pyramid.read(box, 0) == wanted).all())))
            child.start()
        child.join(20)
        alive = child.is_alive()
        child.kill()
    assert not alive, "the child waits for a lock of its parent"
    assert results.get()
    child.join()


def test_files_evicted_from_the_cache_are_closed(tissue_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_pipeline.pyramid.level.MAX_OPEN_SHARDS", 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    pyramid = Pyramid(tissue_slide / "pyramid.ome.zarr")
    pyramid.read(Box(0, 0, 1600, 1200), 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1


@pytest.mark.parametrize("kind", ["chunk", "index", "short"])
def test_a_damaged_store_names_level_column_and_row(tmp_path: Path, kind: str) -> None:
    store = converted(tmp_path, write_tiff(tmp_path / "s.tif", tissue_picture())) / "pyramid.ome.zarr"
    shard = store / "0" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    if kind == "chunk":
        content[: len(content) // 2] = bytes(len(content) // 2)
    elif kind == "index":
        content[-20] ^= 255
    shard.write_bytes(content[:50] if kind == "short" else content)
    with pytest.raises(StoreError, match=r"ome.zarr/0: the chunk in column 1, row 0 is damaged .*Convert the slide"):
        Pyramid(store).read(Box(300, 10, 10, 10), 0)


def test_a_store_of_another_kind_is_refused(tissue_slide: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.ome.zarr"
    shutil.copytree(tissue_slide / "pyramid.ome.zarr", store)
    metadata = json.loads((store / "0" / "zarr.json").read_text())
    metadata["codecs"][0]["configuration"]["codecs"] = [{"name": "bytes"}]
    (store / "0" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match="not a level of a pyramid"):
        Pyramid(store)
    (store / "zarr.json").write_text('{"attributes": {"ome": {"multiscales": []}, "slide": {}}}')
    with pytest.raises(StoreError, match=r"no OME-Zarr 0\.5 metadata"):
        Pyramid(store)
    (store / "zarr.json").write_text('{"attributes": {"ome": {"multiscales": []}}}')
    with pytest.raises(StoreError, match="not a pyramid"):
        Pyramid(store)


def test_a_missing_shard_is_not_read_as_background(tissue_slide: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tissue_slide / "pyramid.ome.zarr", tmp_path / "p.ome.zarr"))
    next(p for p in (store / "0" / "c").rglob("*") if p.is_file()).unlink()
    with pytest.raises(StoreError, match=r"column 0, row 0 is damaged .*No such file"):
        Pyramid(store).read(Box(0, 0, 2000, 2000), 0)


def test_a_blank_level_has_its_shard_files(tmp_path: Path) -> None:
    grid = ChunkGrid(Size(2048, 1024), Size(256, 256), 4, 4)
    present, digests = write_shards(tmp_path, grid, lambda chunks: [None] * len(chunks), 1)
    assert present == 0
    assert list(digests) == ["c/0/0/0", "c/0/0/1"]
    assert Shard(tmp_path / "c/0/0/1", 16).chunk(3) is None


def test_a_missing_shard_of_an_image_is_not_read_as_zeros(tmp_path: Path) -> None:
    store = tmp_path / "mask.ome.zarr"
    write_image(store, Image.from_corner(np.zeros((700, 5000), np.uint8), 8.0), name="m", slide_mpp=0.5)
    assert not read_image(store, 0.5).data.any()
    (store / "0" / "c" / "0" / "1").unlink()
    with pytest.raises(StoreError, match="1 of 2 shard files are missing"):
        read_image(store, 0.5)
