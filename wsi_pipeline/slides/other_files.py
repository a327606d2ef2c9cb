"""What a file is that OpenSlide does not open: files that are often taken for slides, and what to do about each."""

from __future__ import annotations

from pathlib import Path

_BIO_FORMATS = "Convert it to OME-TIFF, with bfconvert of Bio-Formats: bfconvert SLIDE NEW.ome.tif"
_PICTURE = (
    "Make it a TIFF file: vips copy SLIDE 'NEW.tif[tile,pyramid,compression=jpeg,Q=95]'; set the sheet's column mpp"
)
# (Beginning of the file, what it is, remedy).
_SIGNATURES = (
    (b"\x1f\x8b", "a file compressed by gzip", "Unpack it: gunzip"),
    (b"PK\3\4", "a ZIP archive", "Unpack it: unzip"),
    (b"\x89PNG", "a PNG picture", _PICTURE),
    (b"\xff\xd8\xff", "a JPEG picture", _PICTURE),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the slide", "Fetch the slide: git lfs pull"),
    (b"<!DOCTYPE html", "a web page instead of the slide", "Download it again"),
    (b"<html", "a web page instead of the slide", "Download it again"),
)
_SUFFIXES = {
    ".vsi": "a slide of Olympus (VSI), whose pixels are in .ets files",
    ".ets": "a part of a slide of Olympus (VSI)",
    ".isyntax": "a slide of Philips (iSyntax)",
}


def is_vsi(path: Path) -> bool:
    """Whether this is the TIFF file of an Olympus slide, whose pages are only its label and an overview."""
    return path.suffix.lower() == ".vsi"


def other_format(path: Path) -> tuple[str, str] | None:
    """What a file of no format that can be read is, and a remedy; None where that is not known."""
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \r\n")
    for signature, what, remedy in _SIGNATURES:
        if head[: len(signature)].lower() == signature.lower():
            return what, remedy
    suffix = path.suffix.lower()
    return (_SUFFIXES[suffix], _BIO_FORMATS) if suffix in _SUFFIXES else None
