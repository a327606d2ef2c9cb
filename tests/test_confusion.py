from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logit
from sklearn.metrics import confusion_matrix

from helpers.evaluated import SLIDES, STRIDE, detect_inputs, maps, write_slide
from wsi_pipeline.config import ConfusionRun
from wsi_pipeline.evaluation.confusion import NOT_SCORED, classify
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.metrics.curves import Histogram, confusion_counts
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.stages import confusion


def test_geojson_regions_match_the_confusion_image(scored: Path) -> None:
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
        assert np.array_equal(painted, np.where(codes == NOT_SCORED, 0, codes)), slide


def test_geojson_counts_from_the_origin_of_qupath(scored: Path, tissue_slide: Path, tmp_path: Path) -> None:
    found = detect_inputs(scored, "t1")
    facts = json.loads(found.truth_receipt.read_text())
    receipt, geojson = tmp_path / "truth.json", tmp_path / "c.geojson"
    receipt.write_text(json.dumps(facts | {"qupath_origin": [1000, 800]}))
    confusion.run(
        "t1",
        confusion.Inputs(
            pyramid=tissue_slide / "pyramid.ome.zarr",
            truth=found.truth,
            truth_receipt=receipt,
            heatmap=found.heatmap,
            heatmap_receipt=found.heatmap_receipt,
            calibration=scored / "calibration.json",
        ),
        confusion.Outputs(
            store=tmp_path / "c.ome.zarr", receipt=tmp_path / "c.json", picture=tmp_path / "c.png", geojson=geojson
        ),
        ConfusionRun(),
    )

    def corners(path: Path) -> np.ndarray:
        features = json.loads(path.read_text())["features"]
        return np.concatenate([np.concatenate(one["geometry"]["coordinates"]) for one in features])

    shifted = corners(geojson)
    assert len(shifted)
    np.testing.assert_array_equal(shifted + np.array((1000, 800)), corners(scored / "confusion" / "t1.geojson"))


def test_ignored_positions_are_not_scored(tissue_slide: Path, tmp_path: Path) -> None:
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
    rows = [row.split(",") for row in (tmp_path / "detections" / "t.csv").read_text().splitlines()]
    points = [(logit(float(c)), *(int(float(at) / 200) for at in (x, y))) for c, x, y in rows]
    outside = sorted(c for c, x, y in points if truth[y, x] == NORMAL)
    assert len(outside) < sum(truth[y, x] != TUMOR for _, x, y in points)
    assert sorted(found["false_positives"]) == pytest.approx(outside, abs=1e-6)
    assert found["lesions"] == pytest.approx([max(c for c, x, y in points if truth[y, x] == TUMOR)], abs=1e-6)


def test_the_confusion_image_is_cyan_yellow_and_red(scored: Path) -> None:
    import zarr

    ome = zarr.open_group(scored / "confusion" / "t1.ome.zarr", mode="r").attrs["ome"]
    colors = {c["label-value"]: c["rgba"][:3] for c in ome["image-label"]["colors"]}
    assert (colors[1], colors[2], colors[3]) == ([0, 255, 255], [255, 255, 0], [255, 0, 0])


@given(
    arrays(np.uint16, (4, 6), elements=st.integers(0, 6)),
    arrays(np.bool_, (4, 6)),
    arrays(np.uint8, (4, 6), elements=st.sampled_from((NORMAL, TUMOR, IGNORE))),
)
@settings(max_examples=50, deadline=None)
def test_codes_match_scikit_learn_at_each_score_of_the_map(
    steps: np.ndarray, known: np.ndarray, labels: np.ndarray
) -> None:
    """A score equal to the operating point is called tumour, as in the histogram that the point is chosen on."""
    heat = np.where(known, steps - 2.75, np.nan).astype(np.float32)
    scored = known & (labels != IGNORE)
    assume(scored.any())
    truth = labels[scored] == TUMOR
    for threshold in (np.unique(steps) - 2.75).tolist():
        codes = classify(heat, labels, threshold)
        assert (codes[~scored] == NOT_SCORED).all()
        counts = np.bincount(codes[scored], minlength=4).tolist()
        called = heat[scored].astype(np.float64) >= threshold
        assert counts == confusion_matrix(truth, called, labels=[False, True]).ravel().tolist()
        at = confusion_counts(Histogram.of(heat[scored], truth), threshold)
        assert counts == [at.tn, at.fp, at.fn, at.tp]
