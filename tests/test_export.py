"""Heatmaps as TIFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from helpers.receipts import write_heatmap_receipt
from wsi_pipeline.geometry import Grid
from wsi_pipeline.pyramid.ome_zarr import Image, write_image
from wsi_pipeline.stages import export


def test_the_tiff_keeps_values_and_position(tmp_path: Path) -> None:
    heat = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    heat[2, 3] = np.nan
    write_image(tmp_path / "h.ome.zarr", Image(heat, 60.0, 37.5), name="p", slide_mpp=0.5, fill=float("nan"))
    write_heatmap_receipt(tmp_path / "h.json", "s1", Grid(columns=7, rows=5, stride_px=120, patch_px=150))
    for name in ("one.tif", "two.tif"):
        export.run(export.Inputs(tmp_path / "h.ome.zarr", tmp_path / "h.json"), export.Outputs(tmp_path / name))
    with tifffile.TiffFile(tmp_path / "one.tif") as tiff:
        values, page = tiff.asarray(), tiff.pages[0]
        assert tiff.is_ome
        ome = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
    assert values.dtype == np.uint16
    assert values[2, 3] == 0
    known = np.isfinite(heat)
    np.testing.assert_allclose((values[known] - 1.0) / 65534, heat[known], atol=1 / 131068)
    assert ome["Pixels"]["PhysicalSizeX"] == 60.0
    assert ome["Pixels"]["Plane"]["PositionX"] == 37.25
    assert page.tags["XResolution"].value[0] / page.tags["XResolution"].value[1] == 10000 / 60
    assert ome["Name"] == "tumour probability of s1"
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
