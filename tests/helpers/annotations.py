"""Annotation files."""

from __future__ import annotations

from pathlib import Path


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
