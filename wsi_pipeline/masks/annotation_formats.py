"""Annotation files of any format."""

from __future__ import annotations

from pathlib import Path

from wsi_pipeline.masks.annotation_geojson import read_geojson
from wsi_pipeline.masks.annotation_xml import read_xml
from wsi_pipeline.masks.outlines import FileContent

_GEOJSON_SUFFIXES = (".geojson", ".json")


def read_outlines(slide: str, path: Path) -> FileContent:
    """The content of an annotation file.

    The suffix (.geojson, .json) or the root element of the XML determines the format. Raises `AnnotationError`,
    with the position of a syntax error.
    """
    return (read_geojson if path.suffix.lower() in _GEOJSON_SUFFIXES else read_xml)(slide, path)
