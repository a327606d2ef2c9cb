"""Detection of changes in a results folder."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from wsi_pipeline.cli.app import app
from wsi_pipeline.provenance.checksums import CRATE, compare_digests, digest_paths, list_contents


def write_results(folder: Path) -> None:
    for name in ("slides/a/pyramid.ome.zarr/0/c", "slides/a/pyramid.ome.zarr/zarr.json", "slides/a/a.json", "b.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for hidden in (".snakemake/log", "slides/.partial-0123abcd-a.json/a.json", "checkpoints/1.pt", CRATE, "slides/.x"):
        (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
        (folder / hidden).touch()


def test_a_store_is_listed_as_one_entry_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    write_results(tmp_path)
    assert list_contents(tmp_path) == ["b.csv", "slides/a/a.json", "slides/a/pyramid.ome.zarr/"]


def test_differences_are_named(tmp_path: Path) -> None:
    write_results(tmp_path)
    source = tmp_path.parent / "s.tif"
    source.write_text("slide")
    inside = digest_paths({name: tmp_path / name for name in list_contents(tmp_path)}, 2)
    outside = {**digest_paths({str(source): source}, 1), "s3://bucket/t.tif": "0" * 64}
    assert not compare_digests(tmp_path, inside, outside, 2)
    (tmp_path / "b.csv").unlink()
    (tmp_path / "c.csv").touch()
    (tmp_path / "slides/a/pyramid.ome.zarr/0/c").write_text("other")
    source.write_text("Slide")
    found = compare_digests(tmp_path, inside, outside, 2)
    assert (found.missing, found.new, found.remote) == (["b.csv"], ["c.csv"], ["s3://bucket/t.tif"])
    assert found.changed == ["slides/a/pyramid.ome.zarr/", str(source)]
    assert found.text().splitlines()[-1] == "1 of 4 files and stores are unchanged; 2 changed, 1 missing, 1 new"


def test_verify_exits_with_1_after_a_change(tmp_path: Path) -> None:
    write_results(tmp_path)
    found = digest_paths({name: tmp_path / name for name in list_contents(tmp_path)}, 1)
    graph = [{"@id": name, "sha256": digest} for name, digest in found.items()]
    (tmp_path / CRATE).write_text(json.dumps({"@graph": graph}))
    assert CliRunner().invoke(app, ["verify", str(tmp_path)]).exit_code == 0
    (tmp_path / "b.csv").write_text("changed")
    assert CliRunner().invoke(app, ["verify", str(tmp_path)]).exit_code == 1
