"""Fingerprints of files by content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsi_pipeline.io import fingerprints
from wsi_pipeline.io.fingerprints import Fingerprints, fingerprint


@pytest.mark.parametrize("size", [0, 1, 1000, (8 << 20) + 1, 30 << 20])
def test_copies_and_touched_files_are_the_same(tmp_path: Path, size: int) -> None:
    one, two = tmp_path / "one.tif", tmp_path / "two.tif"
    one.write_bytes(os.urandom(size))
    two.write_bytes(one.read_bytes())
    os.utime(two, (1, 1))
    assert fingerprint(one) == fingerprint(two)
    with two.open("ab") as file:
        file.write(b"\0")
    assert fingerprint(one) != fingerprint(two)


@pytest.mark.parametrize("at", [0, 30 << 19, (30 << 20) - 1])
def test_changes_in_the_samples_of_a_large_file_are_found(tmp_path: Path, at: int) -> None:
    path = tmp_path / "s.tif"
    path.write_bytes(bytes(30 << 20))
    before = fingerprint(path)
    # The middle lies between two samples.
    with path.open("r+b") as file:
        file.seek(at - at % (1 << 16) if at else 0)
        file.write(b"\1" * (2 << 20))
    assert fingerprint(path) != before


def test_large_annotations_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(bytes(30 << 20))
    before = fingerprint(path)
    with path.open("r+b") as file:
        file.seek(3 << 20)
        file.write(b"\1")
    assert fingerprint(path) != before


def test_files_of_unchanged_size_and_time_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.tif"
    path.write_bytes(b"slide")
    first = Fingerprints.of_results(tmp_path)
    first.read([str(path)])
    first.save()
    read: list[Path] = []
    original = fingerprints.fingerprint
    monkeypatch.setattr(fingerprints, "fingerprint", lambda path: read.append(path) or original(path))
    again = Fingerprints.of_results(tmp_path)
    assert again[str(path)] == first[str(path)]
    assert read == []
    os.utime(path, (1, 1))
    touched = Fingerprints.of_results(tmp_path)
    assert touched[str(path)] == first[str(path)]
    assert read == [path]


def test_instances_of_a_dicom_series_are_searched_for_only_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_instance(name: str, series: bytes) -> Path:
        path = tmp_path / "slide" / name
        path.parent.mkdir(exist_ok=True)
        uids = b"\x20\x00\x0d\x00UI\x04\x001.2\x00", b"\x20\x00\x0e\x00UI\x04\x00" + series + b"\x00"
        path.write_bytes(bytes(128) + b"DICM" + b"".join(uids))
        return path

    def found() -> tuple[str, int]:
        searched: list[Path] = []
        original = fingerprints.slide_files
        with monkeypatch.context() as patch:
            patch.setattr(fingerprints, "slide_files", lambda path: searched.append(path) or original(path))
            of_files = Fingerprints.of_results(tmp_path)
            sha256 = of_files[str(first)]
            of_files.save()
        return sha256, len(searched)

    first = write_instance("1.dcm", b"1.3")
    alone, _ = found()
    assert found() == (alone, 0)
    # Another slide in the folder.
    write_instance("2.dcm", b"1.4")
    os.utime(first.parent, (1, 1))
    assert found() == (alone, 1)
    assert found() == (alone, 0)
    second = write_instance("3.dcm", b"1.3")
    os.utime(first.parent, (2, 2))
    both, searched = found()
    assert (both != alone, searched > 0) == (True, True)
    assert found() == (both, 0)
    os.utime(second, (1, 1))
    assert found()[0] == both


@pytest.mark.parametrize("content", ["", "{", "[]", '{"s.tif": 1}', '{"s.tif": [1, 2]}', '{"s.tif": [1, 2, 3]}'])
def test_a_damaged_cache_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "fingerprints.json").write_text(content)
    (tmp_path / "s.tif").write_bytes(b"slide")
    assert Fingerprints.of_results(tmp_path)[str(tmp_path / "s.tif")] == fingerprint(tmp_path / "s.tif")


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    assert Fingerprints.of_results(tmp_path)[str(tmp_path / "s.tif")] == "unreadable"
