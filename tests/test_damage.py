"""Damaged slides and interrupted conversions: one line with a remedy, and never a store that looks complete."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from helpers.slides import tissue_picture, write_tiff
from helpers.tiff import drop_tile, write_pages
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.slides.tiff_pages import read_pages
from wsi_pipeline.slides.tiff_tiles import TiledTiff
from wsi_pipeline.stages import convert

OPTIONS = ConvertRun(chunk_px=256, shard_px=1024)
WHITE = OPTIONS.model_copy(update={"damaged_tiles": "white"})


def run(folder: Path, source: Path, options: ConvertRun = OPTIONS) -> list[dict[str, Any]]:
    outputs = convert.Outputs(folder / "s1" / "p.ome.zarr", folder / "s1" / "p.json")
    convert.run("s1", convert.Inputs(source), outputs, options, mpp=0.5)
    levels: list[dict[str, Any]] = json.loads((folder / "s1" / "p.json").read_text())["levels"]
    return levels


def refused(folder: Path, source: Path, problem: str, options: ConvertRun = OPTIONS) -> None:
    """Assert that the error is one line that names slide, file and remedy, and that no output is left."""
    with pytest.raises(SlideError, match=problem) as caught:
        run(folder, source, options)
    text = str(caught.value)
    assert text.startswith(f"slide s1: {source}: ")
    assert "\n" not in text
    assert caught.value.remedy in text
    assert not (folder / "s1").exists() or list((folder / "s1").iterdir()) == []


def tile_of(source: Path, index: int) -> tuple[int, int]:
    """Offset and byte count of a tile of the first page."""
    with tifffile.TiffFile(source) as tiff:
        page = tiff.pages.first
        return page.dataoffsets[index], page.databytecounts[index]


def overwrite(source: Path, offset: int, data: bytes) -> None:
    with source.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A slide of two levels; OpenSlide reads all tiles of the last level when it opens the slide."""
    picture = tissue_picture(1700, 1100)
    return write_pages(tmp_path / "s.tif", [picture, np.ascontiguousarray(picture[::2, ::2])])


def zeroed(source: Path) -> str:
    offset, count = tile_of(source, 9)
    overwrite(source, offset, bytes(count))
    return "does not begin as a JPEG stream"


def headless(source: Path) -> str:
    offset, _ = tile_of(source, 9)
    overwrite(source, offset + 2, bytes(200))
    return "has no scan"


def endless(source: Path) -> str:
    offset, count = tile_of(source, 9)
    drop_tile(source, 0, 9, count - 60, offset)
    return "does not end"


def beyond(source: Path) -> str:
    offset, _ = tile_of(source, 9)
    drop_tile(source, 0, 9, 5000, offset + 10**7)
    return "the file ends before the tile"


def bloated(source: Path) -> str:
    offset, _ = tile_of(source, 9)
    with source.open("ab") as file:
        file.truncate(source.stat().st_size + 2_000_000)
    drop_tile(source, 0, 9, 1_900_000, offset)
    return "are too many for the tile"


DAMAGES = [zeroed, headless, endless, beyond, bloated]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tile_is_named(tmp_path: Path, slide: Path, damage: Any) -> None:
    problem = damage(slide)
    refused(tmp_path, slide, rf"damaged at level 0, column 2, row 1 \(.*{problem}.*copy it again")


@pytest.mark.parametrize("passthrough", [True, False])
@pytest.mark.parametrize("damage", [zeroed, beyond])
def test_a_damaged_tile_is_white_if_configured(tmp_path: Path, slide: Path, damage: Any, passthrough: bool) -> None:
    damage(slide)
    (level, _) = run(tmp_path, slide, WHITE.model_copy(update={"passthrough": passthrough}))
    assert level["damaged_tiles"] == [[2, 1]]
    assert level["method"] == ("copied" if passthrough else "read")
    pyramid = Pyramid(tmp_path / "s1" / "p.ome.zarr")
    assert (pyramid.read(Box(512, 256, 256, 256), 0) == 255).all()
    for other in (Box(256, 256, 256, 256), Box(768, 256, 256, 256)):
        assert pyramid.read(other, 0).mean() < 200


@pytest.mark.parametrize("passthrough", [True, False])
def test_too_many_damaged_tiles_are_an_error_in_any_case(tmp_path: Path, slide: Path, passthrough: bool) -> None:
    for index in range(17):
        offset, count = tile_of(slide, index)
        overwrite(slide, offset, bytes(count))
    options = WHITE.model_copy(update={"passthrough": passthrough})
    refused(tmp_path, slide, r"damaged at level 0, column \d, row \d, as 16 other tiles", options)


def test_a_damaged_tile_is_named_without_passthrough(tmp_path: Path, slide: Path) -> None:
    zeroed(slide)
    options = OPTIONS.model_copy(update={"passthrough": False})
    refused(tmp_path, slide, r"damaged at level 0, column 2, row 1 \(of 256 px: .*copy it again", options)


def test_only_reads_of_the_damaged_tile_fail(slide: Path) -> None:
    """After its first error, possibly in another thread, an OpenSlide handle fails in every call."""
    zeroed(slide)
    source = SourceSlide("s1", slide, 0.5)
    bad = Box(512, 256, 256, 256)
    boxes = [bad, Box(0, 0, 256, 256), bad, Box(256, 768, 256, 256)] * 20

    def fails(box: Box) -> bool:
        try:
            source.read(box, 0)
        except SlideError:
            return True
        return False

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fails, boxes)) == [box == bad for box in boxes]


def test_a_file_truncated_during_reading_is_detected(slide: Path) -> None:
    """Old content of the reused buffer must not be taken for the tile."""
    with TiledTiff(slide, read_pages(slide)) as tiff:
        (level,) = tiff.levels(Size(1700, 1100))
        tiles = [(column, row) for row in range(level.rows) for column in range(level.columns)]
        assert not any(isinstance(found, ValueError) for found in tiff.read(level, tiles))
        keep = sorted(level.offsets.tolist())[5]
        os.truncate(slide, keep + 100)
        problems = [str(found) for found in tiff.read(level, tiles) if isinstance(found, ValueError)]
        assert problems == ["the file ends before the tile"] * (len(tiles) - 5)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("compression", ["jpeg", "deflate", "none"])
def test_truncated_files_are_refused(tmp_path: Path, compression: str, share: float) -> None:
    whole = write_tiff(tmp_path / "whole.tif", tissue_picture(), compression=compression).read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path, cut, "damaged at level|not a slide that OpenSlide can read")


def test_files_that_are_not_slides_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not a slide")
    refused(tmp_path, text, "not a slide that OpenSlide can read")
    refused(tmp_path, tmp_path / "nothing.tif", "no such file")
    refused(tmp_path, tmp_path, "a folder, not a slide file")
    empty = tmp_path / "empty.svs"
    empty.touch()
    refused(tmp_path, empty, "the file is empty")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("s.tif", gzip.compress(b"slide", mtime=0), "a file compressed by gzip.*gunzip"),
        ("s.svs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS.*git lfs pull"),
        ("s.svs", b"\n<!doctype HTML><html>404", "web page.*Download it again"),
        ("s.tif", b"\x89PNG\r\n\x1a\n", "PNG picture.*vips copy"),
        ("s.tif", b"\xff\xd8\xff\xe0", "JPEG picture.*vips copy"),
        ("s.isyntax", b"<DataObject>", "Philips.*bfconvert"),
        ("s.ets", b"SIS\0", "part of a slide of Olympus.*bfconvert"),
    ],
)
def test_files_that_are_often_taken_for_slides_are_named(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, tmp_path / name, problem)


def test_the_overview_of_an_olympus_slide_is_not_the_slide(tmp_path: Path, slide: Path) -> None:
    refused(tmp_path, slide.rename(tmp_path / "s.vsi"), r"slide of Olympus \(VSI\), whose pixels are in \.ets files")


def test_a_page_without_any_tile_is_refused(tmp_path: Path) -> None:
    """A writer that was interrupted leaves a table of tiles that are all missing, which would be read as white."""
    source = tmp_path / "s.tif"
    with tifffile.TiffWriter(source) as tiff:
        tiff.write(np.zeros((512, 512, 3), np.uint8), tile=(256, 256), photometric="rgb", compression="deflate")
    for index in range(4):
        drop_tile(source, 0, index)
    refused(tmp_path, source, r"page 1 \(512 x 512 px\) has no pixels")


def directory(entries: list[tuple[int, int, int, int]], following: int) -> bytes:
    """A little-endian TIFF directory of (tag, type, count, value or offset)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def tiled_entries(width: int, height: int, tile: int, count: int) -> list[tuple[int, int, int, int]]:
    return [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 7),
        (262, 3, 1, 6),
        (277, 3, 1, 3),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, count, 8),
        (325, 4, count, 8),
    ]


@pytest.mark.parametrize(
    ("entries", "following"),
    [
        pytest.param(tiled_entries(1024, 1024, 256, 16), 8, id="cyclic"),
        pytest.param(tiled_entries(2**31 - 1, 2**31 - 1, 16, 2**31 - 1), 0, id="tiles"),
        pytest.param(tiled_entries(2**30, 2**30, 2**15, 2**30), 0, id="pixels"),
        pytest.param(tiled_entries(0, 0, 0, 0), 0, id="empty"),
    ],
)
def test_decompression_bombs_and_cycles_are_refused(
    tmp_path: Path, entries: list[tuple[int, int, int, int]], following: int
) -> None:
    source = tmp_path / "s.tif"
    source.write_bytes(b"II*\0\x08\0\0\0" + directory(entries, following) + bytes(4096))
    started = time.monotonic()
    problems = (
        "not a slide that OpenSlide can read|damaged at level|more than a file of this size|same size|has no pixels"
    )
    refused(tmp_path, source, problems)
    assert time.monotonic() - started < 20


def test_a_chain_of_20000_directories_is_refused(tmp_path: Path) -> None:
    """The directories hold no pixels."""
    source, size = tmp_path / "s.tif", 2 + 12 * 10 + 4
    entries = tiled_entries(1024, 1024, 256, 16)
    chain = b"".join(directory(entries, 8 + size * (k + 1)) for k in range(20_000))
    source.write_bytes(b"II*\0\x08\0\0\0" + chain + bytes(4096))
    refused(tmp_path, source, r"page 1 \(.*, page 3 .* and 997 more pages have the same size")


def convert_arguments(source: Path, out: Path) -> list[str]:
    return [
        "convert",
        str(source),
        "--slide",
        "s1",
        "--mpp",
        "0.5",
        "--store",
        str(out / "p.ome.zarr"),
        "--receipt",
        str(out / "p.json"),
    ]


# Root without the capabilities that override file permissions. The Python environment stays readable.
UNPRIVILEGED = ["setpriv", "--inh-caps=-dac_override,-dac_read_search", "--bounding-set=-dac_override,-dac_read_search"]


def run_command(source: Path, out: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a child process, started by `launcher`."""
    command = [*launcher, sys.executable, "-c", "from wsi_pipeline.cli.app import main; main()"]
    return subprocess.run([*command, *convert_arguments(source, out)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", ["slide", "folder of the slide", "output"])
def test_missing_permissions_are_named(tmp_path: Path, slide: Path, closed: str) -> None:
    inputs, out = tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir()
    out.mkdir()
    source = slide.rename(inputs / "s.tif")
    path, mode, problem = {
        "slide": (source, 0, f"slide s1: {source}: no permission to read it"),
        "folder of the slide": (inputs, 0, f"slide s1: {source}: no permission to read it"),
        "output": (out, 0o500, f"{out / 'p.ome.zarr'}: cannot be written (Permission denied)"),
    }[closed]
    before = path.stat().st_mode
    path.chmod(mode)
    done = run_command(source, out, *(UNPRIVILEGED if os.geteuid() == 0 else ()))
    path.chmod(before)
    assert done.returncode == 2, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if not line.startswith("s1: "))
    assert error.startswith(f"error: {problem}")
    assert list(out.iterdir()) == []


def test_a_full_disk_gives_one_line_and_no_output(tmp_path: Path, slide: Path) -> None:
    """A file size limit stands in for a full disk: the write fails in the kernel."""
    out = tmp_path / "out"
    done = run_command(slide, out, "prlimit", "--fsize=20000")
    assert done.returncode == 2, done.stderr
    assert "p.ome.zarr: cannot be written (File too large). Free space" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(out.iterdir()) == []
    with pytest.raises(OSError, match="other"), atomic_output(out / "x"):
        raise OSError("other")


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_output_and_can_be_rerun(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4096, 4096, 3), dtype=np.uint8)
    source, out = write_tiff(tmp_path / "s.tif", noise, compression="deflate"), tmp_path / "out"
    command = [sys.executable, "-m", "wsi_pipeline", *convert_arguments(source, out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while not list(out.glob(".partial-*/p.ome.zarr/0/c/0/0/0")):
            assert child.poll() is None, "the conversion ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (out / "p.ome.zarr").exists()
    assert not (out / "p.json").exists()
    assert list(out.glob(".partial-*"))
    assert run_command(source, out).returncode == 0
    assert sorted(p.name for p in out.iterdir()) == ["p.json", "p.ome.zarr"]
    clean = tmp_path / "clean"
    assert run_command(source, clean).returncode == 0
    assert (clean / "p.json").read_bytes() == (out / "p.json").read_bytes()
