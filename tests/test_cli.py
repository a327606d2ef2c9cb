from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from helpers.slides import tissue_picture, write_tiff
from wsi_pipeline.cli.app import app
from wsi_pipeline.config import STAGES


def wsi(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsi_pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_stage_is_a_command() -> None:
    assert set(STAGES) <= set(typer.main.get_group(app).commands)


def test_a_command_prints_its_result(tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "s.tif", tissue_picture(500, 400))
    result = wsi("convert", slide, "--slide", "x", "--store", tmp_path / "x.zarr", "--receipt", tmp_path / "x.json")
    assert (result.returncode, result.stderr) == (
        0,
        "x: 500 x 400 px at 0.5 um per pixel, 2 levels, 2 of them copied (generic-tiff)\n",
    )


def test_user_errors_give_one_line_and_exit_code_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("nothing")
    result = wsi("convert", bad, "--slide", "x", "--store", tmp_path / "x.zarr", "--receipt", tmp_path / "x.json")
    assert result.returncode == 2
    assert result.stderr == (
        f"error: slide x: {bad}: not a slide that OpenSlide can read (Unsupported or missing image file). "
        "Check the file or take the slide out of the sheet\n"
    )
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize("options", ['{"mp": 8}', "not json", "[1]"])
def test_wrong_options_are_refused(tmp_path: Path, options: str) -> None:
    paths = [f"--{name}={tmp_path / name}" for name in ("pyramid", "store", "receipt", "picture")]
    result = wsi("tissue", *paths, "--slide=x", f"--options={options}")
    assert result.returncode == 2
    assert result.stderr.startswith("error: options of tissue: ")
    assert result.stderr.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from wsi_pipeline.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'zarr', 'dask', 'numpy', 'pandas', 'openslide', 'matplotlib', 'bokeh'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
