"""The rooms of the package: allowed imports, and limits on functions."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsi_pipeline

PACKAGE = Path(wsi_pipeline.__file__).parent
# From top to bottom: a room may import only rooms of later lines.
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
    {"geometry", "morphology"},
    {"errors"},
)
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_POSITIONAL_PATHS = 3
MAX_FUNCTION_LINES = 60


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield f"{node.module}"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def path_aliases(tree: ast.Module) -> set[str]:
    """Names assigned at module level to an annotation that contains Path, and Path itself."""
    names = {"Path"}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and is_path(node.value, names):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


def is_path(annotation: ast.expr | None, names: set[str]) -> bool:
    """Whether an annotation contains one of `names`, also inside Annotated, unions and containers."""
    return annotation is not None and any(
        isinstance(node, ast.Name) and node.id in names for node in ast.walk(annotation)
    )


def is_keyword_only(node: ast.ClassDef) -> bool:
    keywords = (k for one in node.decorator_list if isinstance(one, ast.Call) for k in one.keywords)
    return any(k.arg == "kw_only" and isinstance(k.value, ast.Constant) and k.value.value is True for k in keywords)


def positional_paths(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each function and dataclass with its number of positional path arguments."""
    shared = path_aliases(ast.parse((PACKAGE / "stages" / "arguments.py").read_text()))
    names = path_aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "wsi_pipeline.stages.arguments":
            names.update(name.asname or name.name for name in node.names if name.name in shared)
    for function in functions(tree):
        arguments = (*function.args.posonlyargs, *function.args.args)
        yield function.name, sum(is_path(one.annotation, names) for one in arguments)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            fields = (one.annotation for one in node.body if isinstance(one, ast.AnnAssign))
            yield node.name, 0 if is_keyword_only(node) else sum(is_path(one, names) for one in fields)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_their_own_room_and_lower_layers(path: Path) -> None:
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


def test_the_package_does_not_import_snakemake() -> None:
    for path in MODULES:
        assert not [name for name in imported(path) if name.split(".")[0].startswith("snakemake")], path


def test_no_function_takes_more_than_three_paths_by_position() -> None:
    for path in MODULES:
        for name, count in positional_paths(ast.parse(path.read_text())):
            assert count <= MAX_POSITIONAL_PATHS, f"{path}: {name} takes {count} paths by position"


def test_paths_by_position_are_counted_through_aliases_unions_and_containers() -> None:
    tree = ast.parse(
        "from wsi_pipeline.stages.arguments import PyramidArg, Slide\n"
        "Here = Annotated[Path | None, 0]\n"
        "def f(a: PyramidArg, b: Slide, c: list[Path], d: Here, e: Annotated[Path, 0] = 0, *, g: Path) -> None: ...\n"
        "@dataclass(frozen=True)\nclass A:\n    a: Path\n    b: int\n"
        "@dataclass(kw_only=True)\nclass B:\n    a: Path\n"
    )
    assert dict(positional_paths(tree)) == {"f": 4, "A": 1, "B": 0}


def test_no_function_is_longer_than_the_limit() -> None:
    for path in MODULES:
        for function in functions(ast.parse(path.read_text())):
            lines = (function.end_lineno or 0) - function.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{path}: {function.name} has {lines} lines"


def test_every_room_has_a_docstring() -> None:
    for folder in (path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring and len(docstring) > 80, folder


def test_no_test_module_imports_another() -> None:
    folder = Path(__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if path.stem.startswith("test_")} | {"conftest"}
    for path in sorted(folder.rglob("*.py")):
        assert not modules.intersection(imported(path)), f"{path}: shared test code belongs in tests/helpers"


def test_each_mutation_still_applies() -> None:
    """`tests/mutations.tsv` quotes the package: each text occurs once in its file, and its test files exist."""
    folder = Path(__file__).parent
    with (folder / "mutations.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 30
    for row in rows:
        assert (PACKAGE / row["file"]).read_text().count(row["old"]) == 1, row
        assert all((folder / f"test_{name}.py").is_file() for name in row["tests"].split()), row
