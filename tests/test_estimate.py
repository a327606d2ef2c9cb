from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.annotations import square, write_asap
from helpers.slides import tissue_picture, write_tiff
from helpers.tiff import write_pages
from wsi_pipeline.cli.app import app
from wsi_pipeline.cohort.estimate import estimate_cohort, format_estimate
from wsi_pipeline.cohort.sheet import load_sheet
from wsi_pipeline.config import Config, ConvertRun, PyramidOptions, TissueRun
from wsi_pipeline.config.loading import read_yaml
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.masks.label_images import grid_fractions
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert, tissue

CONFIG = Config.model_validate({"patches": {"mpp": 0.5, "size_px": 96}})


def write_sheet(folder: Path, *rows: tuple[str, str, str, str, str]) -> Path:
    sheet = folder / "slides.tsv"
    lines = ["slide\tpath\tsplit\tannotation\tmpp", *("\t".join(row) for row in rows)]
    sheet.write_text("\n".join(lines) + "\n")
    return sheet


def stored(folder: Path) -> tuple[int, int]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return len(files), sum(p.stat().st_size for p in files)


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_the_estimate_is_close_to_the_actual_conversion(tmp_path: Path, compression: str) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture(2300, 2100), compression=compression)
    sheet = load_sheet(write_sheet(tmp_path, ("s1", str(source), "test", "", "")))
    (plan,) = estimate_cohort(sheet, CONFIG).slides
    store = tmp_path / "p.ome.zarr"
    convert.run("s1", convert.Inputs(source), convert.Outputs(store, tmp_path / "p.json"), ConvertRun.of(CONFIG))
    files, size = stored(store)
    assert plan.files == files
    if compression == "jpeg":
        assert plan.store_bytes == pytest.approx(size, rel=0.02, abs=20_000)
        assert plan.read_levels == 0
    else:
        # Estimated from a few sampled chunks.
        assert 0.3 * size < plan.store_bytes < 3 * size
        assert plan.copied_levels == 0
    made = tissue.Outputs(tmp_path / "t.ome.zarr", tmp_path / "t.json", tmp_path / "t.png")
    tissue.run("s1", tissue.Inputs(store), made, TissueRun.of(CONFIG))
    pyramid = Pyramid(store)
    grid = pyramid.grid(pyramid.patch_spec(96, 0.5), None)
    mask = read_image(tmp_path / "t.ome.zarr", pyramid.mpp)
    positions = int((grid_fractions(mask.data > 0, mask.mpp, grid, pyramid.mpp) > 0).sum())
    assert plan.patches == pytest.approx(positions, rel=0.1)


def run_plan(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def write_other_slide(source: Path, path: Path) -> Path:
    """A slide with the same pixels in a file of other content."""
    path.write_bytes(source.read_bytes() + b"\0")
    return path


def test_plan_makes_the_checks_of_the_workflow(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    outline = write_asap(tmp_path / "a.xml", [("Tumor", square(300, 300, 200))])
    sheet = tmp_path / "slides.tsv"
    rows = [("s1", "train", "normal", ""), ("s2", "test", "normal", ""), ("s3", "train", "normal", str(outline))]
    lines = [
        "slide\tpath\tsplit\tlabel\tannotation\texhaustiv",
        *(f"{s}\t{source}\t{p}\t{n}\t{a}" for s, p, n, a in rows),
    ]
    sheet.write_text("\n".join(lines))
    config = tmp_path / "config.yaml"
    config.write_text("evaluation: {operating_point: {rule: youden}}\npatches: {mpp: 0.5, size_px: 96}\n")
    code, text = run_plan(sheet, "--config", config)
    assert code == 2
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    assert f"error: slides s1 (train: {source}) and s2 (test: {source}) are the same file" in errors[0]
    assert "the sheet has no validation slide" in errors[1]
    assert "the sheet has no tumour training slide" in errors[2]
    assert "slide s3" in errors[3]
    assert "outlines tumour, but the sheet's label is normal" in errors[3]
    warnings = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "exhaustiv is ignored" in warnings[0]


def test_a_file_twice_in_a_split_is_a_warning_and_a_frozen_model_needs_no_training_slides(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    sheet = write_sheet(tmp_path, ("s1", str(source), "test", "", ""), ("s2", str(source), "test", "", ""))
    config = tmp_path / "config.yaml"
    results = f"results: {tmp_path}/results\npatches: {{mpp: 0.5, size_px: 96}}\ntraining: {{retrain: frozen}}\n"
    config.write_text(results)
    assert run_plan(sheet, "--config", config)[0] == 2
    model = tmp_path / "results" / "model" / "inception_v3"
    model.mkdir(parents=True)
    (model / "model.json").touch()
    code, text = run_plan(sheet, "--config", config)
    assert code == 0, text
    assert f"warning: slides s1 (test: {source}) and s2 (test: {source}) are the same file" in text


def test_plan_describes_a_valid_cohort(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "s.tif", tissue_picture())
    other = write_other_slide(source, tmp_path / "t.tif")
    asap = write_asap(tmp_path / "a.xml", [("Tumor", square(300, 300, 200))])
    sheet = write_sheet(tmp_path, ("s1", str(source), "train", str(asap), ""), ("s2", str(other), "test", "", "0.25"))
    config = tmp_path / "config.yaml"
    config.write_text("patches: {mpp: 0.5, size_px: 96}\n")
    code, text = run_plan(sheet, "--config", config, "--rate", 50, "--json", tmp_path / "plan.json")
    assert code == 0, text
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["slide", "split", "format", "pixels"]
    assert "s1" in lines[1]
    assert "1600 x 1200" in lines[1]
    assert "4 copied" in lines[1]
    assert "2 slides: 2 generic-tiff" in text
    assert "2 are copied tile by tile, 0 are re-encoded" in text
    assert "at 50 a second" in text
    written = json.loads((tmp_path / "plan.json").read_text())
    assert [slide["mpp"] for slide in written["slides"]] == pytest.approx([0.5, 0.25])
    assert written["problems"] == []


def test_problems_are_reported_and_valid_slides_are_planned(tmp_path: Path) -> None:
    good = write_tiff(tmp_path / "good.tif", tissue_picture())
    scaleless = write_tiff(tmp_path / "scaleless.tif", tissue_picture(), mpp=None)
    coarse = write_tiff(tmp_path / "coarse.tif", tissue_picture(), mpp=4.0)
    picture = tissue_picture()
    # In a TIFF of no scanner such a page would be no level.
    aperio = {"description": "Aperio Image Library v10\r\n1600x1200 (256x256) JPEG/RGB Q=90|MPP = 0.5"}
    odd = write_pages(tmp_path / "odd.svs", [picture, np.ascontiguousarray(picture[::2, ::3])], **aperio)
    blank = write_tiff(tmp_path / "blank.tif", np.full((1200, 1600, 3), 255, np.uint8))
    broken = tmp_path / "broken.svs"
    broken.write_text("no")
    far = write_asap(tmp_path / "far.xml", [("Tumor", square(90000, 300, 200))])
    # Micrometres: in pixels it lies on glass.
    other = write_other_slide(good, tmp_path / "other.tif")
    unit = write_asap(tmp_path / "unit.xml", [("Tumor", square(110, 110, 60))])
    sheet = write_sheet(
        tmp_path,
        ("good", str(good), "test", "", ""),
        ("unit", str(write_other_slide(other, tmp_path / "unit.tif")), "test", str(unit), ""),
        ("scaleless", str(scaleless), "test", "", ""),
        ("coarse", str(coarse), "test", "", ""),
        ("odd", str(odd), "test", "", ""),
        ("blank", str(blank), "test", "", ""),
        ("broken", str(broken), "test", "", ""),
        ("gone", str(tmp_path / "gone.tif"), "test", "", ""),
        ("far", str(other), "train", str(far), ""),
    )
    plan = estimate_cohort(load_sheet(sheet, check_files=False), CONFIG, threads=2)
    assert [slide.slide for slide in plan.slides] == ["blank", "far", "good", "odd", "unit"]
    errors = {problem.slide: problem.text for problem in plan.problems if problem.error}
    assert set(errors) == {"scaleless", "coarse", "broken", "gone", "far", "unit"}
    assert "Set the sheet's column mpp" in errors["scaleless"]
    assert "coarser than the requested 0.5" in errors["coarse"]
    assert "not a slide that OpenSlide can read" in errors["broken"]
    assert "Correct the sheet's column path" in errors["gone"]
    assert "0 % of the annotated tumour lies on tissue" in errors["far"]
    assert "100 % would if they were micrometres" in errors["unit"]
    warnings = {problem.slide: problem.text for problem in plan.problems if not problem.error}
    assert set(warnings) == {"odd", "blank"}
    assert "level 1 is downsampled by 3.00 in x but by 2.00 in y" in warnings["odd"]
    assert "no tissue found" in warnings["blank"]
    assert all("\n" not in problem.text for problem in plan.problems)
    config = tmp_path / "config.yaml"
    config.write_text("patches: {mpp: 0.5, size_px: 96}\n")
    code, text = run_plan(sheet, "--config", config)
    assert code == 2
    assert sum(line.startswith("error: slide ") for line in text.splitlines()) == 6
    assert sum(line.startswith("warning: slide ") for line in text.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "problem"), [("- a", "not a mapping"), ("{", "cannot be read"), (None, "cannot be read")]
)
def test_invalid_config_files_are_refused(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_yaml(path)


def test_validation_slides_are_predicted_if_a_rule_needs_them(tmp_path: Path) -> None:
    source = str(write_tiff(tmp_path / "s.tif", tissue_picture()))
    sheet = load_sheet(write_sheet(tmp_path, ("a", source, "test", "", ""), ("b", source, "validation", "", "")))
    chosen = Config.model_validate({**CONFIG.model_dump(), "evaluation": {"operating_point": {"rule": "youden"}}})
    assert "heatmaps of 1 slides: about" in format_estimate(estimate_cohort(sheet, CONFIG), 10)
    assert "heatmaps of 2 slides: about" in format_estimate(estimate_cohort(sheet, chosen), 10)
    assert "none of them kept" not in format_estimate(estimate_cohort(sheet, chosen), 10)
    passing = CONFIG.model_copy(update={"pyramid": PyramidOptions(keep=False)})
    assert "files, none of them kept; slides" in format_estimate(estimate_cohort(sheet, passing), 10)
