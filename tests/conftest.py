from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helpers import gpus
from helpers.evaluated import SLIDES, maps, write_slide
from helpers.slides import converted, tissue_picture, write_tiff
from helpers.workflow import BATCHED, CONFIG, PLANS, snakemake
from wsi_pipeline.cohort.synthetic import write_cohort
from wsi_pipeline.geometry import Size
from wsi_pipeline.plots import figures
from wsi_pipeline.pyramid.pyramid import Pyramid

gpus.hide()

# PyTorch is a download of gigabytes on Python 3.12 and 3.13; without it, the files that import it are skipped.
_TORCH = re.compile(
    r"^(import torch|from (safetensors\.)?torch|from helpers(\.| import )(predicting|training))\b", re.MULTILINE
)
collect_ignore = (
    []
    if find_spec("torch")
    else [path.name for path in Path(__file__).parent.glob("test_*.py") if _TORCH.search(path.read_text())]
)

# A shell starts background jobs with SIGINT ignored, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def placeholder_figures() -> Iterator[Callable[..., None]]:
    """Empty files in place of rendered figures, which take most of the time of many stages. Yields the original."""

    def save_figure(_: object, path: Path) -> None:
        for suffix in (".png", ".pdf"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(suffix).touch()

    original = figures.save_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", save_figure)
        yield original


@pytest.fixture
def rendered_figures(placeholder_figures: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages render their figures."""
    monkeypatch.setattr(figures, "save_figure", placeholder_figures)


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
    """Heatmaps of `evaluated.SLIDES` and the outputs of the later stages; tests must not change them."""
    root = tmp_path_factory.mktemp("scored")
    for slide in SLIDES:
        write_slide(root, tissue_slide / "pyramid.ome.zarr", slide, *maps(slide))
    return root


def finished_once(tmp_path_factory: pytest.TempPathFactory, name: str, config: dict[str, Any]) -> Path:
    """A finished run of the tiny cohort, made once for all xdist workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            write_cohort(folder / "cohort", PLANS, Size(1536, 1152))
            sheet = folder / "cohort" / "slides.tsv"
            sheet.write_text(sheet.read_text().replace(f"{folder}/", ""))
            result = snakemake(folder, config=config)
            assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny cohort; tests must not change it."""
    return finished_once(tmp_path_factory, "workflow", CONFIG)


def _copy_or_link(source: str, target: str) -> None:
    # Weights are nine tenths of a run. Stages replace them and never write into them, so that a link is as good.
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


def copied_run(finished: Path, folder: Path) -> Path:
    """A copy of a finished run, with the original modification times."""
    return Path(shutil.copytree(finished, folder / "run", copy_function=_copy_or_link, symlinks=True))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return copied_run(finished, tmp_path)


@pytest.fixture
def batched_run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of a run that predicted both test slides in one job."""
    return copied_run(finished_once(tmp_path_factory, "batched", BATCHED), tmp_path)
