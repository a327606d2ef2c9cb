"""Stage export: a heatmap as a 16-bit OME-TIFF, for programs that do not read OME-Zarr."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import tifffile

from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.models import HeatmapReceipt

# Zero is where there is no value.
HIGHEST = 65535
_UM_PER_CM = 1e4


def run(heatmap: Path, heatmap_receipt: Path, tiff: Path) -> None:
    """Write the heatmap: 0 where it has no value, else 1 + 65534 times the probability, rounded."""
    facts = read_receipt(heatmap_receipt, HeatmapReceipt)
    image = read_image(heatmap, facts.slide_mpp)
    known = np.isfinite(image.data)
    values = np.zeros(image.data.shape, np.uint16)
    values[known] = np.rint(1 + image.data[known].astype(np.float64) * (HIGHEST - 1))
    position = image.first_centre_um - facts.slide_mpp / 2
    metadata = {
        "axes": "YX",
        "Name": f"tumour probability of {facts.slide}",
        "Description": "0: no value; else the probability is (value - 1) / 65534",
        "PhysicalSizeX": image.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": image.mpp,
        "PhysicalSizeYUnit": "µm",
        "Plane": {"PositionX": [position], "PositionXUnit": ["µm"], "PositionY": [position], "PositionYUnit": ["µm"]},
        # Else it is drawn from the clock.
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, facts.heatmap_sha256)}",
    }
    with atomic_output(tiff) as partial:
        tifffile.imwrite(
            partial,
            values,
            ome=True,
            metadata=metadata,
            photometric="minisblack",
            compression="zlib",
            resolution=(_UM_PER_CM / image.mpp,) * 2,
            resolutionunit="CENTIMETER",
        )
