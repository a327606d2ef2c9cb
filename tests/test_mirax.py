"""Slides of which a part of the canvas was scanned, and slides of several files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest

from helpers.mirax import STEP_PX, write_mirax
from helpers.paths import DATA, needs_data
from helpers.slides import converted, tissue_picture
from wsi_pipeline.cohort.estimate import estimate_cohort
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import Config, ConvertRun, TissueRun
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.io.digests import digest_source
from wsi_pipeline.io.fingerprints import fingerprint
from wsi_pipeline.masks.annotation_position import canvas_of, read_overview
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.stages import convert, tissue

CORNER, CANVAS, GAPS = (5, 9), (40, 30), [(4, 0), (4, 1), (5, 1)]
SECTION = Box(CORNER[0] * STEP_PX, CORNER[1] * STEP_PX, 9 * STEP_PX + 8, 8 * STEP_PX + 8)
CONFIG = Config.model_validate({"patches": {"mpp": 0.5, "size_px": 96}, "pyramid": {"chunk_px": 256, "shard_px": 1024}})
FILLS = {"black": 0x000000, "grey": 0xE0E0E0}


def section() -> np.ndarray:
    return tissue_picture(SECTION.width, SECTION.height)


@pytest.fixture(params=FILLS)
def slide(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "s.mrxs"
    return write_mirax(path, section(), corner=CORNER, canvas=CANVAS, gaps=GAPS, fill=FILLS[request.param])


def over_white(path: Path, box: Box, level: int) -> np.ndarray:
    """The pixels of OpenSlide, composed over white by Pillow."""
    with openslide.OpenSlide(path) as slide:
        factor = int(slide.level_downsamples[level])
        region = slide.read_region((box.x * factor, box.y * factor), level, (box.width, box.height))
    white = PIL.Image.new("RGBA", region.size, (255, 255, 255, 255))
    return np.asarray(PIL.Image.alpha_composite(white, region))[..., :3]


def regions(level: int, width: int, height: int) -> list[Box]:
    """Seeded regions all over a level, and at the borders of what was scanned."""
    rng = np.random.default_rng(level)
    factor, size = 2**level, 97
    left, top, right, bottom = (v // factor for v in (SECTION.x, SECTION.y, SECTION.right, SECTION.bottom))
    xs = [left - 40, right - 40, (left + right) // 2, *rng.integers(0, width - size, 4).tolist()]
    ys = [top - 40, bottom - 40, (top + bottom) // 2, *rng.integers(0, height - size, 4).tolist()]
    return [Box(x, y, size, size) for x in xs for y in ys]


@pytest.mark.slow
def test_the_store_has_openslides_pixels_over_white(slide: Path, tmp_path: Path) -> None:
    options = ConvertRun(codec="zstd", chunk_px=256, shard_px=1024)
    outputs = convert.Outputs(tmp_path / "p.ome.zarr", tmp_path / "p.json", tmp_path / "overview.ome.zarr")
    convert.run("s", convert.Inputs(slide), outputs, options)
    receipt, pyramid = json.loads(outputs.receipt.read_text()), Pyramid(outputs.store)
    for level, size in enumerate(pyramid.sizes[:3]):
        for box in regions(level, size.width, size.height):
            np.testing.assert_array_equal(pyramid.read(box, level), over_white(slide, box, level))
        whole = Box(0, 0, size.width, size.height)
        np.testing.assert_array_equal(pyramid.read(whole, level), over_white(slide, whole, level))
    assert pyramid.bounds == Pyramid(tmp_path / "overview.ome.zarr").bounds == SECTION
    assert receipt["bounds"] == [SECTION.x, SECTION.y, SECTION.width, SECTION.height]
    share = SECTION.width * SECTION.height / (pyramid.size.width * pyramid.size.height)
    assert receipt["scanned_share"] == pytest.approx(share, abs=1e-6)
    assert "Doe" not in json.dumps(receipt)


def test_nothing_outside_the_bounds_is_decoded(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = [0, 0, 0]
    original = openslide.OpenSlide.read_region

    def counted(
        self: openslide.OpenSlide, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> PIL.Image.Image:
        decoded[level] += size[0] * size[1]
        return original(self, corner, level, size)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", counted)
    outputs = convert.Outputs(tmp_path / "p.ome.zarr", tmp_path / "p.json")
    convert.run("s", convert.Inputs(slide), outputs, ConvertRun(chunk_px=256, shard_px=1024, verify="all"))
    # To write, and to compare every tile.
    assert decoded == [2 * SECTION.width * SECTION.height // 4**level for level in range(3)]


def test_the_plan_follows_the_bounds(slide: Path, tmp_path: Path) -> None:
    (plan,) = estimate_cohort(Sheet({"s": SlideRow("s", str(slide), "test")}), CONFIG).slides
    store = tmp_path / "p.ome.zarr"
    convert.run("s", convert.Inputs(slide), convert.Outputs(store, tmp_path / "p.json"), ConvertRun.of(CONFIG))
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert plan.store_bytes == pytest.approx(stored, rel=0.5)
    assert plan.source_bytes == sum(path.stat().st_size for path in slide.parent.glob("s*/**/*") if path.is_file()) + (
        slide.stat().st_size
    )
    # The tissue of the picture begins 200 px from each edge; three images of 120 px were not taken.
    area = (SECTION.width - 400) * (SECTION.height - 400)
    assert plan.tissue_share == pytest.approx(area / (plan.width * plan.height), rel=0.1)


@pytest.mark.parametrize("method", ["otsu_saturation", "glass_saturation", "otsu_gray"])
def test_the_canvas_is_neither_tissue_nor_glass(slide: Path, tmp_path: Path, method: str) -> None:
    """The threshold is that of the section alone, whatever the scanner fills the canvas with."""
    folder = converted(tmp_path, slide)
    outputs = tissue.Outputs(tmp_path / "t.ome.zarr", tmp_path / "t.json", tmp_path / "t.png")
    tissue.run("s1", tissue.Inputs(folder / "pyramid.ome.zarr"), outputs, TissueRun(mpp=2, method=method))
    receipt = json.loads(outputs.receipt.read_text())
    assert receipt["glass_gray"] == pytest.approx(244, abs=1)
    mask = read_image(outputs.store, 0.5).data.astype(bool)
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = (v // 4 for v in (SECTION.x, SECTION.y, SECTION.right, SECTION.bottom))
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert found == pytest.approx((left + 50, top + 50, right - 50, bottom - 50), abs=2)


def test_overview_and_canvas_keep_the_frame_of_the_whole_canvas(slide: Path) -> None:
    source = SourceSlide("s", slide)
    canvas, overview = canvas_of(source), read_overview(source)
    source.close()
    assert (canvas.size.width, canvas.bounds) == (CANVAS[0] * STEP_PX + 8, SECTION)
    factor = canvas.size.width / overview.shape[1]
    rows, columns = np.nonzero((overview < 250).any(axis=2))
    assert columns.min() * factor == pytest.approx(SECTION.x, abs=2 * factor)
    assert rows.min() * factor == pytest.approx(SECTION.y, abs=2 * factor)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(("damage", "problem"), [(remove, "is missing"), (empty, "is empty")])
@pytest.mark.parametrize("name", ["Data0000.dat", "Data0002.dat", "Index.dat", "Slidedat.ini"])
def test_a_missing_file_of_a_slide_is_named_at_once(tmp_path: Path, name: str, damage: object, problem: str) -> None:
    slide = write_mirax(tmp_path / "s.mrxs", section(), corner=CORNER, canvas=CANVAS)
    assert callable(damage)
    damage(tmp_path / "s" / name)
    expected = f"slide s: {slide}: its file s/{name} {problem}. Copy the slide again, with all of its files"
    (found,) = estimate_cohort(Sheet({"s": SlideRow("s", str(slide), "test")}), CONFIG).problems[-1:]
    assert (found.text, found.error) == (expected, True)
    with pytest.raises(SlideError) as caught:
        convert.run("s", convert.Inputs(slide), convert.Outputs(tmp_path / "p", tmp_path / "p.json"), ConvertRun())
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", ["Data0000.dat", "Data0002.dat", "Index.dat", "Slidedat.ini"])
def test_digest_and_fingerprint_cover_each_file_of_a_slide(tmp_path: Path, name: str) -> None:
    slide = write_mirax(tmp_path / "s.mrxs", section(), corner=CORNER, canvas=CANVAS)
    before = digest_source(slide), fingerprint(slide)
    (tmp_path / "s" / "notes.txt").write_text("no part of the slide")
    assert (digest_source(slide), fingerprint(slide)) == before
    content = bytearray((tmp_path / "s" / name).read_bytes())
    content[-9] ^= 1
    (tmp_path / "s" / name).write_bytes(content)
    after = digest_source(slide), fingerprint(slide)
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_files_of_a_vms_slide_are_found(tmp_path: Path) -> None:
    slide = tmp_path / "s.vms"
    slide.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=s.jpg\nImageFile(1,0)=s(1,0).jpg\nMapFile=s_map2.jpg\n"
        "OptimisationFile=\nAuthCode=Doe\n"
    )
    for name in ("s.jpg", "s_map2.jpg"):
        (tmp_path / name).write_bytes(b"image")
    with pytest.raises(SlideError, match=r"its file s\(1,0\)\.jpg is missing"):
        SourceSlide("s", slide)


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.dat"])
def test_a_slide_names_no_files_of_other_folders(tmp_path: Path, name: str) -> None:
    slide = write_mirax(tmp_path / "s.mrxs", section(), corner=CORNER, canvas=CANVAS)
    (tmp_path / "outside.dat").write_bytes(b"outside")
    ini = tmp_path / "s" / "Slidedat.ini"
    ini.write_text(ini.read_text().replace("Data0000.dat", name))
    with pytest.raises(SlideError, match=f"its file s/{Path(name).name} is missing"):
        SourceSlide("s", slide)


@needs_data
def test_a_dicom_slide_consists_of_all_instances_of_its_series(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "slides" / "CMU-1-Small-Region-dicom", tmp_path / "series")
    names = sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
    (level,) = sorted(folder.iterdir(), key=lambda path: -path.stat().st_size)[:1]
    other = next(path for path in folder.iterdir() if path != level)
    assert [path.name for path in SourceSlide("s", level).files] == names
    before = fingerprint(level)
    assert fingerprint(other) == before
    series = b"21577574112843936045397065457192622591"
    foreign = other.read_bytes().replace(series, series[::-1])
    (folder / "foreign.dcm").write_bytes(foreign)
    assert fingerprint(level) == before
    with other.open("ab") as file:
        file.write(b"\0\0")
    assert fingerprint(level) != before
    other.write_bytes(b"")
    with pytest.raises(SlideError, match=rf"its file {other.name} is empty"):
        SourceSlide("s", level)


@needs_data
def test_a_dicom_slide_without_its_finest_level_is_refused(tmp_path: Path) -> None:
    """A resampled level looks like a whole slide of a coarser scale."""
    folder = tmp_path / "series"
    folder.mkdir()
    for path in (DATA / "slides" / "CMU-1-Small-Region-dicom").iterdir():
        # Image Type (0008,0008), of another length.
        own, resampled = (b"ORIGINAL\\PRIMARY\\VOLUME\\NONE", b"DERIVED\\PRIMARY\\VOLUME\\RESAMPLED ")
        old, new = (b"\x08\0\x08\0CS" + len(text).to_bytes(2, "little") + text for text in (own, resampled))
        (folder / path.name).write_bytes(path.read_bytes().replace(old, new))
    path = next(folder.iterdir())
    with pytest.raises(SlideError, match="its finest level is one that was resampled from another") as caught:
        SourceSlide("s", path)
    assert "Copy all instances of the DICOM series into one folder" in str(caught.value)
    assert SourceSlide("s", path, mpp=2.0).metadata.mpp == 2.0
