from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from helpers.evaluated import SLIDES, STRIDE, maps, write_slide
from wsi_pipeline.config import (
    PatchLevelOptions,
)
from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR, grid_truth
from wsi_pipeline.pyramid.ome_zarr import Image, read_image
from wsi_pipeline.stages import confusion


def test_error_regions_are_where_the_errors_are(scored: Path) -> None:
    for slide in SLIDES:
        codes = read_image(scored / "confusion" / f"{slide}.ome.zarr", 0.5).data
        found = json.loads((scored / "confusion" / f"{slide}.geojson").read_text())["features"]
        painted = np.zeros_like(codes)
        stride = STRIDE / 0.5
        rows, columns = np.indices(codes.shape)
        centres = shapely.points((columns + 0.5) * stride, (rows + 0.5) * stride)
        for one in found:
            code = ["", "False positive", "False negative", "True positive"].index(
                one["properties"]["classification"]["name"]
            )
            area = shapely.from_geojson(json.dumps(one["geometry"]))
            inside = shapely.contains(area, centres)
            assert one["properties"]["measurements"]["patches"] == inside.sum() == round(area.area / stride**2)
            painted[inside] = code
        assert np.array_equal(painted, np.where(codes == confusion.NOT_SCORED, 0, codes)), slide


def test_ignored_places_are_not_scored(tissue_slide: Path, tmp_path: Path) -> None:
    heat, truth = maps("t1")
    truth[4] = IGNORE
    write_slide(tmp_path, tissue_slide / "pyramid.ome.zarr", "t", heat, truth)
    facts = json.loads((tmp_path / "confusion" / "t.json").read_text())
    assert sum(facts["counts"].values()) == 4 * 8
    assert facts["ignored"] == 8
    codes = read_image(tmp_path / "confusion" / "t.ome.zarr", 0.5).data
    assert (codes[4:] == 255).all()
    assert set(np.unique(codes[:4])) <= {0, 1, 2, 3}
    found = json.loads((tmp_path / "detections" / "t.json").read_text())
    assert found["lesions"] is None
    assert found["reason"] == "parts of the slide are not annotated"


def test_the_confusion_image_has_the_examples_colours(scored: Path) -> None:
    import zarr

    ome = zarr.open_group(scored / "confusion" / "t1.ome.zarr", mode="r").attrs["ome"]
    colors = {c["label-value"]: c["rgba"][:3] for c in ome["image-label"]["colors"]}
    assert (colors[1], colors[2], colors[3]) == ([0, 255, 255], [255, 255, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        # Patches of 40 um on truth pixels of 10 um; the second patch has one tumour pixel at its rim,
        # the third a quarter of tumour that holds its centre.
        ("centre_nearest", [NORMAL, NORMAL, TUMOR, IGNORE]),
        ("centre_region", [NORMAL, NORMAL, TUMOR, IGNORE]),
        ("area_fraction", [NORMAL, NORMAL, NORMAL, IGNORE]),
    ],
)
def test_label_rules(rule: str, wanted: list[int]) -> None:
    truth = np.full((4, 16), NORMAL, np.uint8)
    truth[0, 4] = TUMOR
    truth[2:4, 10:12] = TUMOR
    truth[:, 12:] = IGNORE
    grid = Grid(columns=4, rows=1, stride_px=80, patch_px=80)
    options = PatchLevelOptions(label_rule=rule, region_um=20)
    labels = grid_truth(
        Image.from_corner(truth, 10),
        grid,
        0.5,
        rule=rule,
        region_um=options.region_um,
        min_tumor=options.min_tumor,
    )
    assert labels.tolist() == [wanted]
