from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.annotations import square, write_asap
from wsi_pipeline.config import PatchesRun, TissueRun, TruthRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.masks.label_images import AreaFractions
from wsi_pipeline.model.patch_selection import draw_candidates
from wsi_pipeline.pyramid.patch_store import PatchStore
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import patches, tissue, truth


@pytest.fixture(scope="module")
def prepared(tissue_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue and truth of the slide: tumour in the left half of the tissue, an ignored square in the right."""
    out = tmp_path_factory.mktemp("prepared")
    xml = write_asap(out / "a.xml", [("_0", square(200, 200, 600)), ("Ignore", square(1000, 400, 200))])
    pyramid = tissue_slide / "pyramid.ome.zarr"
    made = tissue.Outputs(out / "tissue.ome.zarr", out / "tissue.json", out / "t.png")
    tissue.run("s1", tissue.Inputs(pyramid), made, TissueRun())
    options = TruthRun(ignore_groups=("Ignore",))
    truth.run(
        "s1",
        truth.Inputs(pyramid, xml),
        truth.Outputs(
            store=out / "truth.ome.zarr", receipt=out / "truth.json", picture=out / "u.png", geojson=out / "u.geojson"
        ),
        options,
        label="tumor",
    )
    return out


def run(prepared: Path, slide: Path, out: Path, **options: object) -> tuple[dict[str, object], list[dict[str, object]]]:
    patches.run(
        "s1",
        patches.Inputs(slide / "pyramid.ome.zarr", prepared / "tissue.ome.zarr", prepared / "truth.ome.zarr"),
        patches.Outputs(*(out / f"patches.{kind}" for kind in ("zarr", "parquet", "json"))),
        PatchesRun(**{"mpp": 0.5, "size_px": 96, **options}),
        threads=2,
    )
    return json.loads((out / "patches.json").read_text()), pq.read_table(out / "patches.parquet").to_pylist()


def test_patches_match_their_labels(prepared: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts, rows = run(prepared, tissue_slide, tmp_path, stride_um=24, codec="zstd")
    assert facts["drawn"] == facts["candidates"]
    pyramid = Pyramid(tissue_slide / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(96, 0.5)
    pixels = zarr.open_array(tmp_path / "patches.zarr", mode="r")
    assert pixels.shape == (len(rows), 96, 96, 3)
    for k, row in enumerate(rows):
        x, y = row["x"], row["y"]
        in_tumor = max(0, min(x + 96, 800) - max(x, 200)) * max(0, min(y + 96, 800) - max(y, 200)) / 96**2
        ignored = x + 96 > 1000 + 16 and x < 1200 - 16 and y + 96 > 400 + 16 and y < 600 - 16
        assert not ignored
        assert row["tumor_fraction"] == pytest.approx(in_tumor, abs=0.1)
        assert (row["label"] == 1) == (row["tumor_fraction"] >= 0.75)
        assert row["tissue_fraction"] >= 0.75
        if k % 17 == 0:
            np.testing.assert_array_equal(pixels[k], pyramid.read_patch(x, y, spec))
    assert {row["label"] for row in rows} == {0, 1}


def test_caps_apply_to_each_class(prepared: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts, rows = run(prepared, tissue_slide, tmp_path, stride_um=24, max_tumor=7, max_normal=3)
    assert facts["drawn"] == {"normal": 3, "tumor": 7}
    assert [(r["y"], r["x"]) for r in rows] == sorted((r["y"], r["x"]) for r in rows)
    assert {r["drawn_as"] for r in rows} == {"tumor", "normal beside tumor"}


def test_slides_are_balanced_if_configured(prepared: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts, _ = run(prepared, tissue_slide, tmp_path, stride_um=24, max_tumor=10, normal_per_tumor=1.25)
    assert facts["drawn"] == {"normal": 13, "tumor": 10}
    labels = np.zeros(40, np.int8)
    assert len(draw_candidates(labels, "s", PatchesRun(max_normal=30, normal_per_tumor=1))) == 30


def test_labels_by_the_centre(prepared: Path, tissue_slide: Path, tmp_path: Path) -> None:
    """Tumour is (200, 200) to (800, 800), an ignored square (1000, 400) to (1200, 600); patches are 96 px, 48 um."""
    rows = {}
    for rule in ("area_fraction", "centre_region", "centre_nearest"):
        _, rows[rule] = run(prepared, tissue_slide, tmp_path, stride_um=12, label_rule=rule, region_um=16)
    for rule, reach in (("centre_region", 16), ("centre_nearest", 0)):
        for row in rows[rule]:
            x, y = row["x"] + 48, row["y"] + 48
            is_tumor = 200 - reach < x < 800 + reach and 200 - reach < y < 800 + reach
            at_border = min(abs(v - edge) for v in (x, y) for edge in (200 - reach, 800 + reach)) < 16
            assert (row["label"] == 1) == is_tumor or at_border
            assert not (1016 < x < 1184 and 416 < y < 584)
    # Only the first rule leaves out patches with some tumour.
    between = {rule: [r for r in found if 0 < r["tumor_fraction"] < 0.75] for rule, found in rows.items()}
    assert not between["area_fraction"]
    assert {r["label"] for r in between["centre_nearest"]} == {0, 1}


@pytest.mark.parametrize(("mpp", "size"), [(0.5, 120), (0.8, 192), (0.45, 108)])
def test_borders_are_stored_around_patches(
    prepared: Path, tissue_slide: Path, tmp_path: Path, mpp: float, size: int
) -> None:
    facts, rows = run(prepared, tissue_slide, tmp_path, mpp=mpp, border_px=12, codec="zstd", max_normal=20)
    assert facts["size_px"] == 96
    assert facts["border_px"] == 12
    store = PatchStore(tmp_path / "patches.zarr")
    assert (store.border_px, store.edge, len(store)) == (12, 120, len(rows))
    with openslide.OpenSlide(tissue_slide.parent / "s1.tif") as slide:
        picture = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3].astype(np.float64)
    assert facts["factor"] == pytest.approx(0.5 / mpp)
    # 120 px of a patch are `size` px of the slide; its border of 12 px is rounded to whole pixels of the slide.
    weights = bicubic(size, 120)
    for number in range(0, len(rows), 7):
        left, top = (round(rows[number][axis] - 12 * mpp / 0.5) for axis in ("x", "y"))
        source = picture[top : top + size, left : left + size]
        wanted = np.einsum("yj,jic,xi->yxc", weights, source, weights, optimize=True)
        # Pillow rounds twice: after each axis.
        assert np.abs(store.read(number) - wanted).max() <= (0 if mpp == 0.5 else 1.5)


def bicubic(size: int, wanted: int) -> np.ndarray:
    """Weights (wanted, size) of Keys' cubic convolution with a = -0.5, widened for a smaller image (anti-aliasing)."""
    scale = size / wanted
    distance = np.abs((np.arange(wanted)[:, None] + 0.5) * scale - np.arange(size) - 0.5) / max(scale, 1)
    near, far = 1.5 * distance**3 - 2.5 * distance**2 + 1, -0.5 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


def test_patches_are_small_jpegs_that_zarr_can_read(prepared: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts, rows = run(prepared, tissue_slide, tmp_path, stride_um=12)
    assert len(rows) > 300
    store = PatchStore(tmp_path / "patches.zarr")
    pyramid = Pyramid(tissue_slide / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(96, 0.5)
    array = zarr.open_array(tmp_path / "patches.zarr", mode="r")
    for number in (0, 1, 255, 256, len(rows) - 1):
        pixels = store.read(number)
        np.testing.assert_array_equal(np.asarray(array[number]), pixels)
        exact = pyramid.read_patch(rows[number]["x"], rows[number]["y"], spec)
        assert np.abs(pixels.astype(int) - exact).mean() < 3
    np.testing.assert_array_equal(store.decode(300, store.stream(300)), store.read(300))
    used = sum(p.stat().st_size for p in (tmp_path / "patches.zarr").rglob("*") if p.is_file())
    assert used < 0.6 * store.nbytes
    first = facts["store_sha256"]
    assert run(prepared, tissue_slide, tmp_path, stride_um=12)[0]["store_sha256"] == first


def test_damaged_patches_are_named(prepared: Path, tissue_slide: Path, tmp_path: Path) -> None:
    run(prepared, tissue_slide, tmp_path, stride_um=24)
    path = tmp_path / "patches.zarr"
    shard = path / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[:200] = bytes(200)
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"patches.zarr: patch 0 is damaged \(.*Run the stage patches again"):
        PatchStore(path).read(0)
    shard.unlink()
    with pytest.raises(StoreError, match="patch 3 is damaged"):
        PatchStore(path).read(3)
    (path / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="not a patch store"):
        PatchStore(path)


def test_a_slide_without_candidates_gives_an_empty_store(prepared: Path, tissue_slide: Path, tmp_path: Path) -> None:
    facts, rows = run(prepared, tissue_slide, tmp_path, size_px=1500)
    assert rows == []
    assert facts["drawn"] == {"normal": 0, "tumor": 0}
    assert zarr.open_array(tmp_path / "patches.zarr", mode="r").shape == (0, 1500, 1500, 3)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 50), st.integers(0, 50))
@settings(max_examples=60)
def test_a_higher_cap_only_adds_patches(normals: int, tumors: int, cap: int, more: int) -> None:
    labels = np.array([0] * normals + [1] * tumors, np.int8)
    few = draw_candidates(labels, "s", PatchesRun(max_normal=cap, max_tumor=cap))
    many = draw_candidates(labels, "s", PatchesRun(max_normal=cap + more, max_tumor=cap + more))
    assert set(few) <= set(many)
    assert len(few) == min(cap, normals) + min(cap, tumors)


def test_draws_are_reproducible_and_differ_between_slides_and_seeds() -> None:
    labels = np.zeros(1000, np.int8)
    options = PatchesRun(max_normal=20)
    one = draw_candidates(labels, "a", options).tolist()
    assert one == draw_candidates(labels, "a", options).tolist()
    assert one != draw_candidates(labels, "b", options).tolist()
    assert one != draw_candidates(labels, "a", options.model_copy(update={"seed": 2})).tolist()


@given(st.floats(-30, 120), st.floats(-30, 120), st.floats(1, 80))
@settings(max_examples=80)
def test_area_fractions_are_exact(x: float, y: float, edge: float) -> None:
    # A mask of 8 um pixels with a rectangle from (16, 24) to (56, 72) um.
    mask = np.zeros((12, 11), bool)
    mask[3:9, 2:7] = True
    inside = max(0.0, min(x + edge, 56) - max(x, 16)) * max(0.0, min(y + edge, 72) - max(y, 24))
    share = AreaFractions(mask, 8.0).of(np.array([x]), np.array([y]), edge)
    assert share[0, 0] == pytest.approx(inside / edge**2, abs=1e-6)
    if inside == 0:
        assert share[0, 0] == 0
    if inside == edge**2:
        assert share[0, 0] == 1


def test_area_fractions_far_from_a_mask_are_zero() -> None:
    mask = np.zeros((400, 500), bool)
    mask[100:200, 100:237] = True
    positions = np.arange(0, 3900, 17.3)
    shares = AreaFractions(mask, 8.0).of(positions, positions, 46.7)
    touched = (positions + 46.7 > 800) & (positions < 1600)
    assert (shares[~touched] == 0).all()
    inside = (positions >= 800) & (positions + 46.7 <= 1600)
    assert (shares[np.ix_(inside, inside)] == 1).all()
