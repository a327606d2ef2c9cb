"""Stage export: a heatmap as a 16-bit OME-TIFF, for programs that do not read OME-Zarr."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.stages.arguments import HeatmapArg, HeatmapReceiptArg


@dataclass(frozen=True, slots=True)
class Inputs:
    heatmap: Path
    heatmap_receipt: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    tiff: Path


def command(
    *,
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceiptArg,
    tiff: Annotated[Path, typer.Option(help="TIFF to write.")],
) -> None:
    """Write a heatmap as a 16-bit OME-TIFF."""
    run(Inputs(heatmap, heatmap_receipt), Outputs(tiff))


def run(inputs: Inputs, outputs: Outputs) -> None:
    """Write the heatmap: 0 for positions without a value, else 1 + 65534 times the probability, rounded."""
    from wsi_pipeline.pyramid.heatmap_tiff import write_heatmap_tiff
    from wsi_pipeline.pyramid.ome_zarr import read_image
    from wsi_pipeline.receipts.base import read_receipt
    from wsi_pipeline.receipts.models import HeatmapReceipt

    facts = read_receipt(inputs.heatmap_receipt, HeatmapReceipt)
    image = read_image(inputs.heatmap, facts.slide_mpp)
    write_heatmap_tiff(outputs.tiff, image, slide=facts.slide, slide_mpp=facts.slide_mpp, digest=facts.heatmap_sha256)
