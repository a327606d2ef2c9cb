from __future__ import annotations

import errno
from pathlib import Path

import pytest

from wsi_pipeline.errors import PipelineError, SlideError, StoreError
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import canonical_json, digest_tree


def test_a_failed_write_keeps_the_old_output(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError), atomic_output(target) as partial:
        partial.mkdir()
        (partial / "half").touch()
        raise RuntimeError
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["store", "store/old"]


@pytest.mark.parametrize("fault", ["nothing is written", "the last rename fails"])
def test_the_old_folder_stays_if_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()

    def fails(path: Path, _: Path) -> None:
        raise OSError(errno.EIO, "input/output error", str(path))

    with pytest.raises((StoreError, OSError)), atomic_output(target) as partial:
        if fault == "the last rename fails":
            partial.mkdir()
            monkeypatch.setattr(Path, "replace", fails)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["store", "store/old"]


def test_a_finished_write_replaces_a_folder_and_clears_leftovers(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()
    (tmp_path / ".partial-0123abcd-store" / "store").mkdir(parents=True)
    (tmp_path / ".partial-0123abcd-store" / "store" / "half").touch()
    with atomic_output(target) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["store", "store/new"]


def test_the_partial_output_of_another_job_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".partial-0123abcd-x-t1.json").mkdir()
    with atomic_output(tmp_path / "t1.json") as partial:
        partial.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".partial-0123abcd-x-t1.json", "t1.json"]


def test_the_first_of_two_writers_fails_and_publishes_nothing(tmp_path: Path) -> None:
    """The first process, presumed lost, continues to write, and its writer recreates missing folders."""
    target = tmp_path / "store"
    with pytest.raises(StoreError, match="store: another process is writing it too"), atomic_output(target) as first:
        (first / "0").mkdir(parents=True)
        (first / "0" / "chunk").touch()
        with atomic_output(target) as second:
            second.mkdir()
            (second / "whole").touch()
            (first / "1").mkdir(parents=True)
            (first / "1" / "chunk").touch()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["store", "store/whole"]


def test_the_second_of_two_writers_of_a_file_wins(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with pytest.raises(StoreError, match="another process is writing it too"), atomic_output(target) as first:
        first.write_text("first")
        with atomic_output(target) as second:
            second.write_text("second")
    assert target.read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


def test_digests_depend_on_names_and_contents_but_not_on_snakemakes_marker(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_tree(tmp_path)
    (tmp_path / ".snakemake_timestamp").write_text("now")
    assert digest_tree(tmp_path) == first
    (tmp_path / "a").write_text("2")
    second = digest_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, digest_tree(tmp_path)}) == 3


def test_json_is_stable_and_has_no_nan() -> None:
    assert canonical_json({"b": 1, "a": "µ"}) == '{\n "a": "µ",\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


def test_errors_are_one_line() -> None:
    error = SlideError("s", "a.tif", "broken\nin two", remedy="Mend it")
    assert str(error) == "slide s: a.tif: broken in two. Mend it"
    assert isinstance(error, PipelineError)
