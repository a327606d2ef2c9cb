"""Mutation tests: each wrong line of `mutations.tsv` must fail a test.

    python tests/mutate.py [--workers 2] [WORD ...]      with words: rows that contain one of them

A row names test modules (without `test_`), a file of the package, a text that occurs in it once, and what replaces
it. The mutation is applied to a copy of the package in a temporary folder, which PYTHONPATH puts before the working
tree, and the tests run against that copy. Exit code 1 if a mutation survives, if a text does not occur exactly once,
or if the tests fail without a mutation.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "wsi_pipeline"

# Imported once, before the forks.
PRELOADED = ("torch", "dask.array", "matplotlib.figure", "pandas", "skimage.measure", "sklearn.ensemble")

Mutation = dict[str, str]


def read_mutations(words: list[str]) -> list[Mutation]:
    """Rows of the table; with `words`, only those that contain one of them."""
    with (TESTS / "mutations.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row for row in rows if not words or any(word in " ".join(row.values()) for word in words)]


@contextmanager
def copied_package() -> Iterator[Path]:
    """A copy of the package in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        yield copy


def run_tests(package: Path, names: Iterable[str]) -> tuple[int, str]:
    """Exit code and output of pytest, run in a fork on a copy of the package."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(TESTS.parent)
            # For child processes of tests; without PYTHONSAFEPATH the working directory would come first.
            os.environ |= {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}
            sys.path.insert(0, str(package.parent))
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not nightly"]
            code = pytest.ExitCode.INTERNAL_ERROR
            try:
                code = pytest.main([*options, *(f"tests/test_{name}.py" for name in names)])
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def verdict(mutation: Mutation) -> str:
    """`caught`, or why the mutation was not caught."""
    with copied_package() as package:
        path = package / mutation["file"]
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        count = text.count(mutation["old"])
        if count != 1:
            return f"NOT APPLIED, found {count} times"
        path.write_text(text.replace(mutation["old"], mutation["new"]), encoding="utf-8")
        code, output = run_tests(package, mutation["tests"].split())
    # 1: a test failed. Other codes: pytest did not get as far as the tests.
    return {0: "SURVIVED", 1: "caught"}.get(code, f"NOT RUN\n{output}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only rows that contain one of these")
    parser.add_argument("--workers", type=int, default=2, help="mutations at a time")
    arguments = parser.parse_args()
    mutations = read_mutations(arguments.words)
    for module in PRELOADED:
        importlib.import_module(module)
    with copied_package() as package:
        code, output = run_tests(package, sorted({name for row in mutations for name in row["tests"].split()}))
    if code:
        print(f"the tests fail without a mutation\n{output}")
        return 1
    survived = 0
    with multiprocessing.get_context("fork").Pool(arguments.workers) as pool:
        for row, found in zip(mutations, pool.imap(verdict, mutations), strict=True):
            print(f"{row['file']}: {row['old']} -> {row['new']}: {found}", flush=True)
            survived += found != "caught"
    print(f"{len(mutations) - survived} caught, {survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
