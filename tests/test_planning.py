"""The index of a job's inputs, and what the benchmark of plans and runs stands on."""

from __future__ import annotations

import gc
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from snakemake.iocontainers import InputFiles
from snakemake.scheduling.job_scheduler import JobScheduler

from wsi_pipeline.planning import collect_rarely, index_inputs, look_at_some

# What a job keeps and what it says, in a process of its own: Snakemake's classes are changed.
KEEP_LESS = """
import asyncio, sys, tracemalloc
from types import SimpleNamespace
import snakemake.api
from snakemake.io import IOCache, _IOFile, AnnotatedString, ancient, is_flagged
from snakemake.iocontainers import InputFiles
from snakemake.jobs import Job
from snakemake.pathvars import Pathvars
from snakemake.persistence import NO_PARAMS_CHANGE, PersistenceBase
from snakemake.dag import DAG

# As Snakemake does: what is asked for stays.
def asked(_, *jobs):
    for job in jobs or dag.jobs:
        job._params = job._non_derived_params = job._resources = "made"
    return said
said = "changed"
async def finished(_, job):
    asked(_, job)
DAG.update_conda_envs = PersistenceBase.params_changed = asked
DAG.finish = finished

from wsi_pipeline.planning import keep_less

if sys.argv[1] == "less":
    keep_less()
names = [f"{sys.argv[2]}/{number}" for number in range(4)]
workflow = SimpleNamespace(iocache=IOCache(0), storage_settings=None)
rule = SimpleNamespace(workflow=workflow, pathvars=Pathvars())
files = [_IOFile(name, rule) for name in names]
old = _IOFile(ancient("{slide}"), rule)
tracemalloc.start()
made = [old.apply_wildcards({"slide": str(number)}) for number in range(1000)]
print(tracemalloc.get_traced_memory()[0])
assert all(is_flagged(one, "ancient") and isinstance(one._file, AnnotatedString) for one in made)
made[0].flags["temp"] = True
assert is_flagged(made[0], "temp") and not is_flagged(made[1], "temp") and not is_flagged(old, "temp")
assert made[3] == "3" and hash(made[3]) == hash("3") and made[3].format() == "3"
inputs = InputFiles(fromdict={"index": "a", "b": "c"})
assert inputs.index == "a"
try:
    inputs.sort()
except AttributeError as error:
    assert str(error).startswith("sort() cannot be used")
job = Job.__new__(Job)
job.output = files[:3]
for benchmark in (None, files[3]):
    job._benchmark = benchmark
    job.rule = SimpleNamespace(expand_benchmark=lambda _: None)
    job.wildcards_dict = {}
    print(asyncio.run(Job.output_mintime.fget(job)))
job = SimpleNamespace(is_group=lambda: False)
dag = SimpleNamespace(jobs=[job])
left = [None if sys.argv[1] == "less" else "made"] * 3
def kept():
    return [job._params, job._non_derived_params, job._resources]
asyncio.run(DAG.finish(dag, job))
assert kept() == left
assert PersistenceBase.params_changed(None, job) == "changed" and kept() == left
said = ""
assert PersistenceBase.params_changed(None, job) is (NO_PARAMS_CHANGE if sys.argv[1] == "less" else "")
DAG.update_conda_envs(dag)
assert kept() == left
"""


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

    def said(which: str) -> list[str]:
        command = [sys.executable, "-c", KEEP_LESS, which, str(tmp_path)]
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
