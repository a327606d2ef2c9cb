"""Versions of what made a result."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What can change a result.
PACKAGES = (
    "snakemake",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "zarr",
    "numcodecs",
    "imagecodecs",
    "dask",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "pyvips",
    "pandas",
    "pyarrow",
    "shapely",
    "safetensors",
    "matplotlib",
    "bokeh",
)


def git_commit() -> str | None:
    """Of the git repository that the package lies in, `-dirty` where files were changed; None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None  # noqa: S603


def package_versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
