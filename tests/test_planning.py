"""The index of a job's inputs, and what the benchmark of plans and runs stands on."""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.iocontainers import InputFiles
from snakemake.scheduling.job_scheduler import JobScheduler

from conftest import ROOT
from wsi_pipeline.planning import collect_rarely, index_inputs, look_at_some


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


def test_jobs_keep_less_and_say_the_same(tmp_path: Path) -> None:
    for name, time in (("1", 50), ("2", 40), ("3", 30)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))

    recorded = f"{tmp_path}/0"
    record = {"rule": "a", "input": [recorded], "input_checksums": {recorded: None}, "params": []}
    (tmp_path / "record.json").write_text(json.dumps(record))

    def said(which: str) -> list[str]:
        command = [sys.executable, str(ROOT / "tests" / "planned_objects.py"), which, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    (usual, *times), (less, *same) = said("usual"), said("less")
    assert times == same == ["40.0", "30.0"]
    assert int(less) < 0.75 * int(usual)


@pytest.mark.parametrize(("ready", "most", "count"), [(500, 200, 200), (200, 200, 200), (500, None, 500)])
def test_the_scheduler_looks_at_some_of_the_ready_jobs(ready: int, most: int | None, count: int) -> None:
    usual = JobScheduler.open_jobs, JobScheduler.remaining_jobs
    jobs = set(range(ready))
    dag = SimpleNamespace(ready_jobs=jobs, needrun_jobs=lambda: iter(range(ready)), finished={1, 2}.__contains__)
    scheduler = JobScheduler.__new__(JobScheduler)
    scheduler.workflow = SimpleNamespace(dag=dag)
    scheduler.subsample, scheduler.running, scheduler.failed = most, {3}, set()
    try:
        look_at_some()
        seen = scheduler.open_jobs
        # Another sample each time, so that jobs that cannot run now do not stand before those that can.
        again = scheduler.open_jobs
        left = scheduler.remaining_jobs
        assert list(left) == list(left) == [0, *range(4, ready)]
        assert len(left) == ready - 3
    finally:
        JobScheduler.open_jobs, JobScheduler.remaining_jobs = usual
    assert len(seen) == len(set(seen)) == count
    assert set(seen) <= jobs
    assert len(jobs) == ready
    assert (set(seen) != set(again)) == (count < ready)


@pytest.mark.workflow
def test_the_benchmark_of_runs_makes_all_that_the_rules_want() -> None:
    run = runpy.run_path(str(ROOT / "benchmarks" / "scale.py"))["run"]
    # Four slides train: four steps each. Two are tested: six. And train, calibrate, evaluate, report, all.
    assert run(6).startswith("| 6 | 33 | ")
