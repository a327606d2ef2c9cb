"""HTTP responses of `wsi-pipeline view`, without a browser."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from helpers.paths import DATA, needs_data
from helpers.slides import tissue_picture
from helpers.viewer import served
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.geometry import Box
from wsi_pipeline.masks.label_images import IGNORE, TUMOR
from wsi_pipeline.plots.overlays import outline_png, tissue_overlay, truth_overlay
from wsi_pipeline.pyramid.ome_zarr import Image, write_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert


def convert_here(source: Path, slide: Path, options: ConvertRun, mpp: float | None = None) -> Pyramid:
    outputs = convert.Outputs(slide / "pyramid.ome.zarr", slide / "pyramid.json")
    convert.run(slide.name, convert.Inputs(source), outputs, options, mpp=mpp)
    return Pyramid(slide / "pyramid.ome.zarr")


@pytest.fixture(scope="module")
def results(tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with copied tiles, and a lossless one with a tissue mask."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(tissue_slide, folder / "slides" / "copied")
    (folder / "source").mkdir()
    source = tissue_slide.parent / "s1.tif"
    options = ConvertRun(codec="zstd", passthrough=False, chunk_px=256, shard_px=1024)
    pyramid = convert_here(source, folder / "slides" / "lossless", options)
    mask = np.zeros((150, 200), np.uint8)
    mask[30:90, 40:120] = 1
    write_image(
        folder / "slides" / "lossless" / "tissue.ome.zarr",
        Image.from_corner(mask, 4.0),
        name="t",
        slide_mpp=pyramid.mpp,
    )
    (folder / "slides" / "lossless" / "tissue.json").write_text('{"stage": "tissue"}')
    (folder / "secret.json").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def address(results: Path) -> Iterator[str]:
    with served(results) as url:
        yield url


def get(address: str, path: str, host: str | None = None) -> tuple[int, str, bytes]:
    """Status, media type and body of a GET request; the path below that of the address is sent unchanged."""
    where = urlsplit(address)
    path = where.path.rstrip("/") + path
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    connection.putrequest("GET", path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    found = response.status, response.getheader("Content-Type", ""), response.read()
    connection.close()
    return found


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Pillow.open(io.BytesIO(content)).convert("RGB"))


def test_tiles_equal_the_pyramid(results: Path, address: str) -> None:
    for name, kind in (("copied", "image/jpeg"), ("lossless", "image/png")):
        pyramid = Pyramid(results / "slides" / name / "pyramid.ome.zarr")
        for level in range(len(pyramid.levels)):
            grid = pyramid.levels[level].grid
            column, row = grid.columns - 1, grid.rows // 2
            status, found_kind, content = get(address, f"/tiles/{name}/{level}/{column}/{row}")
            assert (status, found_kind) == (200, kind)
            inside = grid.box(column, row).clipped(grid.size)
            found = pixels(content)[: inside.height, : inside.width].astype(int)
            # Two decoders of the same stream may round differently.
            assert np.abs(found - pyramid.read(inside, level)).max() <= (2 if name == "copied" else 0)


def test_copied_tiles_are_not_decoded(results: Path, address: str) -> None:
    level = Pyramid(results / "slides" / "copied" / "pyramid.ome.zarr").levels[0]
    stream = level.stream(2, 2)
    assert stream is not None
    scan = stream[stream.index(b"\xff\xda") :]
    assert get(address, "/tiles/copied/0/2/2")[2].endswith(scan)


def rgb_tiff(path: Path) -> Path:
    """A TIFF with RGB JPEG streams that do not declare their colour space."""
    import tifffile

    picture = tissue_picture(512, 512)
    picture[..., 0] = np.maximum(picture[..., 0], 200)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            picture,
            tile=(256, 256),
            compression="jpeg",
            photometric="rgb",
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
            compressionargs={"level": 95, "outcolorspace": "rgb"},
        )
    return path


def test_streams_declare_their_colour_space(tmp_path: Path) -> None:
    slide = tmp_path / "results" / "slides" / "rgb"
    pyramid = convert_here(rgb_tiff(tmp_path / "rgb.tif"), slide, ConvertRun(), mpp=0.5)
    assert pyramid.levels[0].codec.colorspace_jpeg == "RGB"  # type: ignore[union-attr]
    with served(tmp_path / "results") as address:
        _, kind, content = get(address, "/tiles/rgb/0/1/1")
    assert kind == "image/jpeg"
    assert np.abs(pixels(content).astype(int) - pyramid.read(Box(256, 256, 256, 256), 0)).max() <= 2


@needs_data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs"])
def test_real_tiles_have_the_right_colours(name: str, tmp_path: Path) -> None:
    pyramid = convert_here(DATA / "slides" / name, tmp_path / "results" / "slides" / "real", ConvertRun())
    chunk = pyramid.levels[0].grid.chunk
    with served(tmp_path / "results") as address:
        for column, row in ((2, 3), (4, 5)):
            _, kind, content = get(address, f"/tiles/real/0/{column}/{row}")
            box = Box(column * chunk.width, row * chunk.height, chunk.width, chunk.height)
            assert kind == "image/jpeg"
            assert np.abs(pixels(content).astype(int) - pyramid.read(box, 0)).max() <= 3


def test_masks_are_drawn_as_outlines(results: Path, address: str) -> None:
    status, kind, content = get(address, "/tissue/lossless/0/1/1")
    assert (status, kind) == (200, "image/png")
    painted = np.asarray(Pillow.open(io.BytesIO(content)).convert("RGBA"))[..., 3] > 0
    # The tissue begins at x = 160 um, pixel 320, and y = 120 um, pixel 240 (in the previous row of tiles).
    assert painted[:, 320 - 256 - 1 : 320 - 256 + 2].all()
    assert not painted[:, 320 - 256 + 4 :].any()
    assert get(address, "/tissue/lossless/0/0/0")[0] == 204
    # The other slide has no tissue mask, and neither slide has a truth image.
    assert get(address, "/tissue/copied/0/1/1")[0] == 404
    assert get(address, "/truth/lossless/0/1/1")[0] == 404


def test_outlines_do_not_depend_on_tiles() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((60, 80)) > 0.7).astype(np.uint8)
    truth[5:25, 5:25], truth[10:15, 10:15], truth[40:, 60:] = TUMOR, 0, IGNORE
    for overlay in (truth_overlay(Image.from_corner(truth, 8.0)), tissue_overlay(Image.from_corner(truth, 8.0))):
        for mpp in (1.0, 8.0, 13.0):
            size = int(80 * 8 / mpp), int(60 * 8 / mpp)
            whole = drawn(outline_png(overlay, Box(0, 0, *size), mpp), size)
            half = size[0] // 2, size[1] // 2
            for x, y in ((0, 0), (half[0], 0), (0, half[1]), half):
                part = drawn(outline_png(overlay, Box(x, y, *half), mpp), half)
                assert np.array_equal(part, whole[y : y + half[1], x : x + half[0]]), (mpp, x, y)


def drawn(content: bytes | None, size: tuple[int, int]) -> NDArray[np.uint8]:
    assert content is not None
    found = np.asarray(Pillow.open(io.BytesIO(content)).convert("RGBA"))
    assert found.shape[:2] == size[::-1]
    return found


def test_small_regions_stay_visible_when_zoomed_out() -> None:
    truth = np.zeros((400, 400), np.uint8)
    truth[201, 77], truth[201, 78] = TUMOR, IGNORE
    found = drawn(outline_png(truth_overlay(Image.from_corner(truth, 8.0)), Box(0, 0, 16, 16), 200.0), (16, 16))
    assert found[8, 3].tolist() == [230, 25, 25, 255]


def test_only_normal_inside_tumour_is_outlined_in_green() -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30], truth[15:25, 15:25] = TUMOR, 0
    found = drawn(outline_png(truth_overlay(Image.from_corner(truth, 8.0)), Box(0, 0, 40, 40), 8.0), (40, 40))
    assert found[16, 20].tolist() == [0, 158, 60, 255]
    assert found[10, 20].tolist() == [230, 25, 25, 255]
    assert found[5, 20, 3] == found[20, 20, 3] == 0


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.json",
        "/secret.json",
        "/%2e%2e/secret.json",
        "/slides/..",
        "/slides/..%2f..%2fsecret.json",
        "/slides/%2e%2e%2fsecret.json",
        "/tiles/../0/0/0",
        "/tiles/..%2fcopied/0/0/0",
        "/tiles/copied/0/0/0/../../..",
        "/tiles/nobody/0/0/0",
        "/tiles/copied/99/0/0",
        "/tiles/copied/0/9999/0",
        "/tiles/copied/0/-1/0",
        "/tiles/copied%00/0/0/0",
        "/heat/copied",
        "/heat/copied?model=..%2f..",
        "/slides/copied?model=../slides",
        "/view.py",
        "/static/view.js",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
    ],
)
def test_other_paths_cannot_be_read(address: str, path: str) -> None:
    status, _, content = get(address, path)
    assert status == 404
    assert b"secret" not in content
    assert b"Traceback" not in content


def test_requests_without_the_token_are_refused(address: str, results: Path) -> None:
    where = urlsplit(address)
    server = f"{where.scheme}://{where.netloc}/"
    token = where.path.strip("/")
    for other in ("", "0" * 32, token[:-1], token.upper(), f"x/{token}"):
        for path in ("/", "/results", "/slides/copied", "/tiles/copied/0/0/0", "/view.js"):
            status, _, content = get(f"{server}{other}", path)
            assert status == 403
            assert token.encode() not in content
    with served(results) as again:
        assert urlsplit(again).path != where.path


def test_foreign_host_headers_are_refused(address: str) -> None:
    port = urlsplit(address).port
    assert get(address, "/results", host=f"localhost:{port}")[0] == 200
    assert get(address, "/results", host="localhost")[0] == 200
    for host in (f"evil.example:{port}", "evil.example", f"localhost.evil.example:{port}", "0.0.0.0"):  # noqa: S104
        assert get(address, "/results", host=host)[0] == 403


def test_the_page_has_security_headers_and_its_files_exist(address: str) -> None:
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    connection.request("GET", where.path)
    response = connection.getresponse()
    assert "default-src 'self'" in (response.getheader("Content-Security-Policy") or "")
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    named = re.findall(r'(?:src|href)="([^"]+)"', response.read().decode())
    connection.close()
    assert {"panels.js", "view.js", "panels.css", "view.css"} <= set(named)
    assert all(get(address, f"/{name}")[0] == 200 for name in named if not name.startswith("data:"))


def test_a_damaged_tile_is_named(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "results")
    (shard, *_) = (tmp_path / "results" / "slides" / "copied" / "pyramid.ome.zarr" / "0" / "c").rglob("0")
    (shard,) = [path for path in shard.parent.rglob("*") if path.is_file()][:1]
    shard.write_bytes(shard.read_bytes()[:-30])
    with served(tmp_path / "results") as address:
        status, _, content = get(address, "/tiles/copied/0/0/0")
        assert status == 500
        assert "pyramid.ome.zarr/0: the chunk in column 0, row 0 is damaged" in json.loads(content)["error"]
        assert get(address, "/tiles/lossless/0/0/0")[0] == 200


def test_a_reconverted_slide_is_reloaded(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "results")
    slides = tmp_path / "results" / "slides"
    with served(tmp_path / "results") as address:
        before = json.loads(get(address, "/slides/copied")[2])
        assert get(address, "/tiles/copied/0/1/1")[1] == "image/jpeg"
        shutil.rmtree(slides / "copied")
        assert json.loads(get(address, "/slides/copied")[2])["levels"] == []
        shutil.copytree(slides / "lossless", slides / "copied")
        (slides / "copied" / "pyramid.json").touch()
        after = json.loads(get(address, "/slides/copied")[2])
        assert after["versions"]["convert"] != before["versions"]["convert"]
        assert get(address, "/tiles/copied/0/1/1")[1] == "image/png"


def run_view(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("wsi-pipeline")), "view", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_startup_errors_are_one_line(address: str, results: Path, tmp_path: Path) -> None:
    port = urlsplit(address).port
    found = run_view(str(results), "--port", str(port))
    assert (found.returncode, found.stderr) == (
        2,
        f"error: port {port} is in use. Name another one with --port, or 0 for any\n",
    )
    found = run_view(str(tmp_path))
    assert (found.returncode, found.stderr) == (
        2,
        f"error: {tmp_path}: no results of a run. Name a folder that Snakemake filled\n",
    )


def test_jpeg_decoders_agree_on_sent_streams(results: Path, address: str) -> None:
    """Decoders other than Pillow's accept the colour space marker too."""
    content = get(address, "/tiles/copied/0/1/1")[2]
    assert np.abs(imagecodecs.jpeg8_decode(content).astype(int) - pixels(content)).max() <= 2
