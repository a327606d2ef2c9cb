"""The index of a job's inputs, and what the benchmark of plans and runs stands on."""

from __future__ import annotations

import gc
import runpy
from typing import Any

import pytest
from conftest import ROOT
from snakemake.iocontainers import InputFiles

from wsi_pipeline.planning import collect_rarely, index_inputs


class Counted(str):
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.fixture(autouse=True)
def own() -> None:
    index_inputs()


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_the_answers_are_those_of_a_list(count: int) -> None:
    files = InputFiles(toclone=[f"{number}.json" for number in range(count)])
    for name in ("0.json", "2.json", f"{count - 1}.json", f"{count}.json", ""):
        assert (name in files) == (name in list(files))
    files.append("new")
    assert "new" in files
    assert "newer" not in files


def test_a_question_costs_no_walk_through_the_inputs() -> None:
    files = InputFiles(toclone=[str(number) for number in range(10_000)])
    Counted.compared = 0
    for number in range(1000):
        assert Counted(f"{number}.json") not in files
    assert Counted.compared < 100


def test_python_looks_for_cycles_rarely_but_does() -> None:
    def looks() -> int:
        return sum(one["collections"] for one in gc.get_stats())

    usual = gc.get_threshold()
    try:
        collect_rarely()
        before = looks()
        kept: list[Any] = [[] for _ in range(40_000)]
        assert looks() - before <= 1
        for one in kept:
            one.append(one)
        del kept, one
        more: list[Any] = [[] for _ in range(60_000)]
        assert len(more) and looks() - before >= 1
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


@pytest.mark.workflow
def test_the_benchmark_of_runs_makes_all_that_the_rules_want() -> None:
    run = runpy.run_path(str(ROOT / "benchmarks" / "scale.py"))["run"]
    # Four slides train: four steps each. Two are tested: six. And train, calibrate, evaluate, report, all.
    assert run(6).startswith("| 6 | 33 | ")
