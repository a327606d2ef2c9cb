"""The rule graph in docs/images is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

IMAGES = ROOT / "docs" / "images"


def edges(dot: str) -> set[tuple[str, str]]:
    """Pairs of a rule and a rule that uses its outputs. Node numbers and order differ from run to run."""
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', dot, re.MULTILINE))
    return {(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)$", dot, re.MULTILINE)}


@pytest.mark.workflow
def test_the_rulegraph_matches_the_demo(tmp_path: Path) -> None:
    (tmp_path / "data" / "demo").mkdir(parents=True)
    rows = ["slide\tpath\tsplit\tlabel\tannotation"]
    for split in ("train", "validation", "test"):
        rows += [f"{split}-n\tslide.tif\t{split}\tnormal\t", f"{split}-t\tslide.tif\t{split}\ttumor\toutline.xml"]
    (tmp_path / "data" / "demo" / "slides.tsv").write_text("\n".join(rows) + "\n")
    for name in ("slide.tif", "outline.xml"):
        (tmp_path / name).touch()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--configfile", str(ROOT / "config" / "demo.yaml"), "--rulegraph"]
    drawn = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    committed = (IMAGES / "rulegraph.dot").read_text()
    assert edges(drawn)
    assert edges(committed) == edges(drawn), "docs/images/rulegraph.dot is out of date: run make generated"
    # Graphviz names each edge in the picture.
    picture = (IMAGES / "rulegraph.svg").read_text()
    shown = re.findall(r"<title>(\d+)&#45;&gt;(\d+)</title>", picture)
    assert set(shown) == set(re.findall(r"^\s*(\d+) -> (\d+)$", committed, re.MULTILINE))
