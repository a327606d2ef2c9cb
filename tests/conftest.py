from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import yaml
from filelock import FileLock
from numpy.typing import NDArray

from helpers.evaluated import SLIDES, maps, write_slide
from wsi_pipeline.cohort.synthetic import Plan, write_cohort
from wsi_pipeline.config import PyramidRun
from wsi_pipeline.geometry import Size
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("WSI_PIPELINE_TEST_DATA", ROOT.parent / "shared" / "data"))

# A tiny cohort and its config, for the tests of the workflow.
PLANS = (
    Plan("normal-1", "train", "north"),
    Plan("tumor-1", "train", "north", lesions=1),
    Plan("tumor-2", "validation", "north", lesions=1),
    Plan("normal-3", "test", "north"),
    Plan("tumor-3", "test", "north", lesions=1),
)
CONFIG: dict[str, Any] = {
    "results": "results",
    "cohort": {"name": "tiny (synthetic)", "slides": "cohort/slides.tsv", "synthetic": True},
    "patches": {"mpp": 1.0, "size_px": 75, "stride_um": 40, "min_tissue": 0.5, "max_normal": 60},
    "training": {"start": "random", "batch_size": 8, "max_steps": 4, "validate_every": 2, "learning_rate": 1e-3},
    "evaluation": {"interval": {"resamples": 100}},
}

# Results are compared to the last bit, which holds on a CPU: no test sees a GPU but those of test_cuda.py.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell's background jobs ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

needs_data = pytest.mark.skipif(
    not (DATA / "slides").is_dir(),
    reason=f"no real slides at {DATA}; set WSI_PIPELINE_TEST_DATA",
)


def write_tiff(path: Path, rgb: NDArray[np.uint8], mpp: float | None = 0.5, compression: str = "jpeg") -> Path:
    """A pyramidal tiled TIFF that OpenSlide opens."""
    height, width, _ = rgb.shape
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(rgb).tobytes(), width, height, 3, "uchar")
    scale = {} if mpp is None else {"xres": 1000 / mpp, "yres": 1000 / mpp}
    image.copy(interpretation="srgb").tiffsave(
        str(path), compression=compression, Q=90, tile=True, tile_width=256, tile_height=256, pyramid=True, **scale
    )
    return path


def write_asap(path: Path, rings: list[tuple[str, list[tuple[float, float]]]]) -> Path:
    """ASAP XML with (group, vertices) annotations."""
    annotations = "".join(
        f'<Annotation Name="a{k}" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(ring))
        + "</Coordinates></Annotation>"
        for k, (group, ring) in enumerate(rings)
    )
    path.write_text(f"<ASAP_Annotations><Annotations>{annotations}</Annotations></ASAP_Annotations>")
    return path


def square(x: float, y: float, edge: float) -> list[tuple[float, float]]:
    return [(x, y), (x + edge, y), (x + edge, y + edge), (x, y + edge)]


def tissue_picture(width: int = 1600, height: int = 1200) -> NDArray[np.uint8]:
    """White glass with a pink rectangle of noisy tissue from (200, 200) to 200 px from the far edges."""
    rng = np.random.default_rng(0)
    rgb = np.full((height, width, 3), 244, np.uint8)
    tissue = rng.normal((200, 120, 180), 12, (height - 400, width - 400, 3))
    rgb[200 : height - 200, 200 : width - 200] = np.clip(tissue, 0, 255)
    return rgb


def converted(folder: Path, source: Path, slide: str = "s1", mpp: float | None = None) -> Path:
    """Convert a slide and return the folder that holds pyramid.ome.zarr and pyramid.json."""
    target = folder / slide
    options = PyramidRun(chunk_px=256, shard_px=1024)
    convert.run(slide, source, target / "pyramid.ome.zarr", target / "pyramid.json", options, mpp)
    return target


@pytest.fixture(scope="session")
def tissue_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a converted slide with `tissue_picture` at 0.5 um per pixel."""
    folder = tmp_path_factory.mktemp("slide")
    return converted(folder, write_tiff(folder / "s1.tif", tissue_picture()))


@pytest.fixture(scope="session")
def tissue_pyramid(tissue_slide: Path) -> Pyramid:
    return Pyramid(tissue_slide / "pyramid.ome.zarr")


@pytest.fixture(scope="session")
def scored(tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heatmaps of `evaluated.SLIDES` and what the stages after them have made; not to be changed."""
    root = tmp_path_factory.mktemp("scored")
    for slide in SLIDES:
        write_slide(root, tissue_slide / "pyramid.ome.zarr", slide, *maps(slide))
    return root


def snakemake(folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--configfile", "config.yaml", "--cores", "2", "--scheduler", "greedy", "--keep-going", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny cohort, made once for all of xdist's workers; not to be changed."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "workflow"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            write_cohort(folder / "cohort", PLANS, Size(1536, 1152))
            sheet = folder / "cohort" / "slides.tsv"
            sheet.write_text(sheet.read_text().replace(f"{folder}/", ""))
            result = snakemake(folder)
            assert result.returncode == 0, result.stdout + result.stderr
    return folder


@contextmanager
def served(results: Path) -> Iterator[str]:
    """The address of `wsi-pipeline view`."""
    command = [str(Path(sys.executable).with_name("wsi-pipeline")), "view", str(results), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    try:
        assert said
        yield said[0]
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
