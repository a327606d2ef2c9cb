"""Versions of the code and packages that produced a result."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Packages that can change a result.
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
    """Commit of the package's git repository, with `-dirty` for uncommitted changes; None without repository or git."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None  # noqa: S603


def package_versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that are installed, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
