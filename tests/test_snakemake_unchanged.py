"""The workflow changes nothing inside Snakemake or its plugins, so that any version of the accepted range works."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.parser import parse
from snakemake.sourcecache import LocalSourceFile

from helpers.paths import ROOT

SOURCES = sorted(
    path
    for folder in ("wsi_pipeline", "workflow")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".smk") or path.name == "Snakefile"
)
# Attributes of these, which are objects of our own classes, may be assigned to.
OWN = {"self", "cls"}
SETTERS = {"setattr", "delattr", "__setattr__", "__delattr__"}


def tree(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text())
    opened = SimpleNamespace(sourcecache=SimpleNamespace(open=lambda _: path.open()))
    return ast.parse(parse(LocalSourceFile(str(path)), opened, {})[0])


def snakemake_names(module: ast.Module) -> set[str]:
    """Names of Snakemake and its plugins in a module, and `workflow`, which every Snakefile finds defined."""
    names = {"workflow"}
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                if (source or alias.name).startswith("snakemake"):
                    names.add((alias.asname or alias.name).split(".")[0])
    return names


def targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign | ast.Delete):
        return [one for target in node.targets for one in ast.walk(target) if isinstance(one, ast.expr)]
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return [node.target]
    return []


def root(node: ast.expr) -> str | None:
    """The name that an expression such as `a.b[c].d` begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def changes(module: ast.Module, *, anything: bool) -> Iterator[str]:
    """Assignments to attributes of Snakemake's objects; with `anything`, to those of any object except `OWN`.

    An object of Snakemake may reach a function under any name.
    """
    theirs = snakemake_names(module)
    for node in ast.walk(module):
        for target in targets(node):
            inside = isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store | ast.Del)
            inside |= isinstance(target, ast.Subscript) and isinstance(target.ctx, ast.Store | ast.Del)
            name = root(target) if inside else None
            foreign = anything and isinstance(target, ast.Attribute) and name not in OWN
            if inside and (name in theirs or foreign):
                yield f"line {target.lineno}: {ast.unparse(target)} = ..."
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in SETTERS and (anything or (node.args and root(node.args[0]) in theirs)):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_snakemake_object_is_modified(path: Path) -> None:
    assert not list(changes(tree(path), anything=path.is_relative_to(ROOT / "workflow")))


@pytest.mark.parametrize(
    "patch",
    [
        "from snakemake.dag import DAG\nDAG.finish = f",
        "import snakemake.dag\nsnakemake.dag.DAG.finish = f",
        "import snakemake.dag as d\nd.DAG.finish, x = f, 1",
        "from snakemake.jobs import Job\nsetattr(Job, 'x', 1)",
        "from snakemake.jobs import Job\nJob.x['y'] = 1",
        "from snakemake.jobs import Job\nJob.x += 1",
        "from snakemake.jobs import Job\ndel Job.x",
        "workflow.scheduler._executor.format_job_exec = f",
        "def once(executor):\n    executor.format_job_exec = f",
        "def once(executor):\n    object.__setattr__(executor, 'x', 1)",
    ],
)
def test_monkey_patches_are_detected(patch: str) -> None:
    assert list(changes(ast.parse(patch), anything=True))
