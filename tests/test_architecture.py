"""The rooms of the package: which may import which, and what stays outside."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsi_pipeline

PACKAGE = Path(wsi_pipeline.__file__).parent
# From the top to the bottom: a room imports only rooms of later lines.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"stages", "view"},
    {"report"},
    {"provenance"},
    {"plots"},
    {"evaluation", "model"},
    {"cohort"},
    {"masks"},
    {"pyramid"},
    {"slides", "metrics", "receipts"},
    {"io"},
    {"config", "progress_bar", "seeds"},
    {"geometry"},
    {"errors"},
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield f"{node.module}"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_its_own_room_and_lower_ones_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    layer = next(number for number, rooms in enumerate(LAYERS) if room in rooms)
    allowed = {room}.union(*LAYERS[layer + 1 :])
    names = [name.split(".")[1] for name in imported(path) if name.startswith("wsi_pipeline.")]
    rooms = {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    assert rooms <= allowed, f"{room} imports {rooms - allowed}"


def test_no_stage_imports_another() -> None:
    shared = "wsi_pipeline.stages.arguments"
    for path in sorted((PACKAGE / "stages").glob("*.py")):
        names = [name for name in imported(path) if name.startswith("wsi_pipeline.stages")]
        assert all(name.startswith(shared) for name in names), path


def test_the_package_knows_nothing_of_snakemake() -> None:
    for path in MODULES:
        assert not [name for name in imported(path) if name.split(".")[0].startswith("snakemake")], path


def test_every_room_says_what_lives_there() -> None:
    for folder in (path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert said and len(said) > 80, folder


def test_no_test_module_imports_another() -> None:
    folder = Path(__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if path.stem.startswith("test_")} | {"conftest"}
    for path in sorted(folder.rglob("*.py")):
        assert not modules.intersection(imported(path)), f"{path}: what several tests use lives in tests/helpers"


def test_each_mutation_still_applies() -> None:
    """`tests/mutations.tsv` quotes the package: each text occurs once in its file, and its test files exist."""
    folder = Path(__file__).parent
    with (folder / "mutations.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 30
    for row in rows:
        assert (PACKAGE / row["file"]).read_text().count(row["old"]) == 1, row
        assert all((folder / f"test_{name}.py").is_file() for name in row["tests"].split()), row
