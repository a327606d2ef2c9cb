"""A heatmap as a 16-bit OME-TIFF (https://docs.openmicroscopy.org/ome-model/)."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.pyramid.ome_zarr import Image

_HIGHEST = 65535
_UM_PER_CM = 1e4


def encode_probabilities(heat: NDArray[np.float32]) -> NDArray[np.uint16]:
    """1 + 65534 times the probability, rounded; 0 for positions without one (NaN)."""
    known = np.isfinite(heat)
    values = np.zeros(heat.shape, np.uint16)
    values[known] = np.rint(1 + heat[known].astype(np.float64) * (_HIGHEST - 1))
    return values


def write_heatmap_tiff(path: Path, heatmap: Image, *, slide: str, slide_mpp: float, digest: str) -> None:
    """Write a heatmap atomically; `digest`, that of its content, makes the UUID."""
    # OME positions refer to pixel centres, with the origin at the centre of the first level-0 pixel.
    position = heatmap.first_centre_um - slide_mpp / 2
    metadata = {
        "axes": "YX",
        "Name": f"tumour probability of {slide}",
        "Description": "0: no value; else the probability is (value - 1) / 65534",
        "PhysicalSizeX": heatmap.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": heatmap.mpp,
        "PhysicalSizeYUnit": "µm",
        "Plane": {"PositionX": [position], "PositionXUnit": ["µm"], "PositionY": [position], "PositionYUnit": ["µm"]},
        # By default tifffile draws the UUID from the clock.
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
    }
    with atomic_output(path) as partial:
        tifffile.imwrite(
            partial,
            encode_probabilities(heatmap.data),
            ome=True,
            metadata=metadata,
            photometric="minisblack",
            compression="zlib",
            resolution=(_UM_PER_CM / heatmap.mpp,) * 2,
            resolutionunit="CENTIMETER",
        )
