"""Annotation files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Ring = list[tuple[float, float]]


def square(x: float, y: float, edge: float) -> list[tuple[float, float]]:
    return [(x, y), (x + edge, y), (x + edge, y + edge), (x, y + edge)]


def write_asap(path: Path, rings: list[tuple[str, list[tuple[float, float]]]]) -> Path:
    """ASAP XML with (group, vertices) annotations."""
    annotations = "".join(
        f'<Annotation Name="a{k}" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(ring))
        + "</Coordinates></Annotation>"
        for k, (group, ring) in enumerate(rings)
    )
    path.write_text(f"<ASAP_Annotations><Annotations>{annotations}</Annotations></ASAP_Annotations>")
    return path


def region(ring: Ring, kind: object = 0, negative: int = 0, tag: str = "Vertex") -> str:
    """A region of ImageScope, or with the tag V of HALO."""
    vertices = "".join(f'<{tag} X="{x}" Y="{y}"/>' for x, y in ring)
    return f'<Region Id="1" Type="{kind}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'


def write_imagescope(path: Path, *layers: tuple[str, list[str]]) -> Path:
    """ImageScope XML with layers (name, regions)."""
    text = "".join(
        f'<Annotation Id="{k}" Name="{name}"><Attributes><Attribute Name="x" Value="y"/></Attributes>'
        f"<Regions><RegionAttributeHeaders/>{''.join(regions)}</Regions><Plots/></Annotation>"
        for k, (name, regions) in enumerate(layers)
    )
    path.write_text(f'<Annotations MicronsPerPixel="0.25">{text}</Annotations>')
    return path


def feature(geometry: dict[str, Any] | None, group: str | None, **properties: Any) -> dict[str, Any]:
    """An annotation of QuPath."""
    classification = {} if group is None else {"classification": {"name": group, "color": [200, 0, 0]}}
    own = {"objectType": "annotation"} | classification | properties
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": own}


def polygon(*rings: Ring) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[*map(list, ring), list(ring[0])] for ring in rings]}


def write_geojson(path: Path, *features: dict[str, Any], collection: bool = True) -> Path:
    content = {"type": "FeatureCollection", "features": features} if collection else list(features)
    path.write_text(json.dumps(content))
    return path
