"""The files that a slide consists of: one in most formats, more in MIRAX, Hamamatsu VMS and VMU, and DICOM.

MIRAX and VMS list theirs in INI files: https://openslide.org/formats/mirax/, https://openslide.org/formats/hamamatsu/.
Folders in those names do not count, so that no file can name one elsewhere.
A DICOM slide is all instances of one series in a folder: DICOM PS3.10, section 7.1, and PS3.5, section 7.1.2.
"""

from __future__ import annotations

import re
from configparser import Error, RawConfigParser
from functools import lru_cache
from pathlib import Path

# Of a VMS or VMU file: the images, which a VMS file numbers by their place, and what else OpenSlide reads.
_VMS_KEYS = re.compile(r"(imagefile(\(.*\))?|mapfile|optimisationfile)$")
# The attributes Study and Series Instance UID are neighbours in the dataset, but not in sequences that refer to others.
_SERIES = re.compile(rb"\x20\x00\x0d\x00UI..[\d.\0 ]*\x20\x00\x0e\x00UI..([\d.]+)", re.DOTALL)
_DICOM_MAGIC, _DICOM_HEADER_BYTES = b"DICM", 1 << 16
# An interrupted copy leaves empty files, which may belong to any series of the folder.
_EMPTY = b""


def slide_files(path: Path) -> list[Path]:
    """The files that the slide at `path` consists of, `path` among them, whether they exist or not.

    Raises `OSError` for a file that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return [path, *_mirax_files(path)]
    if suffix in (".vms", ".vmu"):
        return [path, *_vms_files(path)]
    series = _series(path) if is_folder_searched(path) else None
    if series is None:
        return [path]
    of_series = _files_of_series(path.parent, path.parent.stat().st_mtime_ns)
    return sorted({path, *of_series.get(series, ()), *of_series.get(_EMPTY, ())})


def is_folder_searched(path: Path) -> bool:
    """Whether a slide may be of DICOM, so that its files are found by their content."""
    suffix = path.suffix.lower()
    # Instances often have no suffix: the end of their UID looks like one.
    return suffix in ("", ".dcm", ".dicom") or suffix[1:].isdigit()


def _mirax_files(path: Path) -> list[Path]:
    folder = path.with_suffix("")
    ini = folder / "Slidedat.ini"
    listed = _read_ini(ini)
    names = [
        name for key, name in listed.get("DATAFILE", {}).items() if key.startswith("file_") and key != "file_count"
    ]
    index = listed.get("HIERARCHICAL", {}).get("indexfile")
    return [ini, *(folder / Path(name).name for name in [index, *names] if name)]


def _vms_files(path: Path) -> list[Path]:
    keys = [pair for section in _read_ini(path).values() for pair in section.items()]
    return [path.parent / Path(name).name for key, name in keys if name and _VMS_KEYS.match(key)]


def _read_ini(path: Path) -> dict[str, dict[str, str]]:
    """The sections of an INI file, with keys in lower case; empty where there is no such file."""
    parser = RawConfigParser(delimiters=("=",), strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (FileNotFoundError, Error):
        return {}
    return {name: dict(parser[name]) for name in parser.sections()}


@lru_cache
def _files_of_series(folder: Path, _: int) -> dict[bytes, list[Path]]:
    """The files of each DICOM series in a folder. The second argument is its time: after a change it is read again."""
    found: dict[bytes, list[Path]] = {}
    for file in folder.iterdir():
        try:
            series = _series(file)
        except OSError:
            continue
        if series is not None:
            found.setdefault(series, []).append(file)
    return found


def _series(path: Path) -> bytes | None:
    """The Series Instance UID of a DICOM file, `_EMPTY` for an empty .dcm file; None for any other file."""
    with path.open("rb") as file:
        head = file.read(132 + _DICOM_HEADER_BYTES)
    if not head and path.suffix.lower() == ".dcm":
        return _EMPTY
    found = _SERIES.search(head) if head[128:132] == _DICOM_MAGIC else None
    return None if found is None else found[1]
