"""Planning and running large cohorts: what Snakemake does slowly, or keeps more often than it needs.

For each file that a job needs, Snakemake asks whether the job that makes the file takes it as input as well, and goes
through the inputs one by one. The training has three inputs a slide, and each heatmap asks twice: with 10,000 slides
that is a quarter of the time of a plan. And Python looks again and again for cycles among objects of which hardly any
ever goes away: a seventh of the rest.

Of the memory, a sixth went to dictionaries that hold the two attributes of a file's flags, and another to tasks that
ask how old each output is, all of them begun before the first one ends. Names of the same files, parameters of jobs
whose turn has not come, sets that stay empty and guards of names took less each, and as much together.

While jobs run, each that ends has all jobs that are ready looked at, of which `scheduler-subsample` then keeps some,
and all jobs that are still to come, for schedulers that are not the greedy one.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import snakemake.api  # noqa: F401 - before snakemake.dag, which cannot be imported first
from snakemake.dag import DAG
from snakemake.io import AnnotatedString, _IOFile
from snakemake.iocontainers import AttributeGuard, InputFiles, Namedlist
from snakemake.jobs import Job, Reason
from snakemake.persistence import NO_PARAMS_CHANGE, PersistenceBase
from snakemake.persistence.file import FilePersistence
from snakemake.scheduling.job_scheduler import JobScheduler

# Below this, building the index costs more than it saves.
_FEW = 64
# New objects before a look for cycles among them, such looks before one at older objects, and those before one at all.
_COLLECT_AFTER = (50_000, 20, 100)

# What a job hardly ever has; Snakemake fills these sets when it makes the job, and only asks afterwards.
_MOSTLY_EMPTY = ("temp_output", "protected_output", "touch_output", "pipe_or_service_output", "_queue_input")
_NOTHING: frozenset[Any] = frozenset()
# What a job's reason to run hardly ever has; Snakemake makes a set where it finds none.
_ASKED = ("_updated_input", "_missing_output", "_updated_input_run")
# What each list of files, parameters and so on has a list of.
_OVERRIDABLE = ("index", "sort")

_clone_flags = _IOFile.clone_flags
_make_job = Job.__init__
_answer = Reason.__bool__
_output_mintime = Job.output_mintime
_remaining_jobs = JobScheduler.remaining_jobs
_update_conda_envs = DAG.update_conda_envs
_params_changed = PersistenceBase.params_changed
_finish = DAG.finish
_read = FilePersistence._io_read


def _contains(files: InputFiles, file: Any) -> bool:
    if len(files) < _FEW:
        return list.__contains__(files, file)
    index = files.__dict__.get("_index")
    # Snakemake may add to the inputs of a job, but never exchanges one for another.
    if index is None or index[0] != len(files):
        index = files.__dict__["_index"] = len(files), frozenset(files)
    return file in index[1]


class _SlimString(AnnotatedString):  # type: ignore[misc]
    """A string with flags, without a dictionary of its own."""

    __slots__ = ("_flags", "callable")


def _slim_flags(file: _IOFile, other: _IOFile, skip_storage_object: bool = False) -> None:
    _clone_flags(file, other, skip_storage_object)
    flags = file._file.flags
    file._file = _SlimString(file._file)
    file._file.flags = flags


@cache
def _guard(name: str) -> AttributeGuard:
    guard: AttributeGuard = object.__new__(AttributeGuard)
    guard.name = name
    return guard


def _shared_name(file: _IOFile) -> str:
    return sys.intern(str.__str__(file))


def _shared_record(persistence: FilePersistence, *arguments: Any) -> dict[str, Any]:
    """What is recorded of a file, which has the names of all inputs: those of an evaluation in each of its outputs."""
    record: dict[str, Any] = _read(persistence, *arguments)
    if inputs := record.get("input"):
        record["input"] = [sys.intern(name) for name in inputs]
    if sums := record.get("input_checksums"):
        record["input_checksums"] = {sys.intern(name): found and sys.intern(found) for name, found in sums.items()}
    return record


def _slim_job(job: Job, *arguments: Any, **keywords: Any) -> None:
    _make_job(job, *arguments, **keywords)
    for name in _MOSTLY_EMPTY:
        if not getattr(job, name):
            setattr(job, name, _NOTHING)


def _slim_answer(reason: Reason) -> bool:
    """Whether there is a reason to run a job; Snakemake makes each of the sets for the question."""
    answer: bool = _answer(reason)
    for name in _ASKED:
        if not getattr(reason, name):
            setattr(reason, name, None)
    return answer


async def _oldest_output(job: Job) -> float | None:
    """As Snakemake's own, but one after the other: a local file answers at once, and no task is kept for it."""
    if any(file.is_storage for file in job.output):
        found: float | None = await _output_mintime.fget(job)
        return found
    files = [*job.output, *([job.benchmark] if job.benchmark else [])]
    times = [(await file.mtime()).local_or_storage() for file in files if await file.exists()]
    return min(times, default=None)


def _forget(jobs: Iterable[Job]) -> None:
    """Parameters and resources, which Snakemake makes anew for a job when it is asked for them."""
    for job in jobs:
        job._params = job._non_derived_params = job._resources = None


def _forget_after_envs(dag: DAG) -> None:
    _update_conda_envs(dag)
    _forget(dag.jobs)


def _forget_after_params(persistence: PersistenceBase, job: Job, *arguments: Any, **keywords: Any) -> Any:
    changed = _params_changed(persistence, job, *arguments, **keywords)
    _forget([job])
    # One for all that have not changed.
    return changed or NO_PARAMS_CHANGE


async def _forget_finished(dag: DAG, job: Any, *arguments: Any, **keywords: Any) -> None:
    await _finish(dag, job, *arguments, **keywords)
    _forget(job if job.is_group() else [job])


def _some_ready(scheduler: JobScheduler) -> list[Any]:
    ready, most = scheduler.workflow.dag.ready_jobs, scheduler.subsample
    return random.sample(tuple(ready), most) if most and len(ready) > most else list(ready)


class _Remaining:
    """Jobs that are still to come, looked up when somebody wants to see them."""

    def __init__(self, scheduler: JobScheduler) -> None:
        self._scheduler = scheduler

    def __iter__(self) -> Iterator[Any]:
        return iter(_remaining_jobs.fget(self._scheduler))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def index_inputs() -> None:
    """Let `file in job.input` take the same time for any number of inputs; the answers stay what they are."""
    if "__contains__" not in vars(InputFiles):
        InputFiles.__contains__ = _contains


def keep_less() -> None:
    """Let a planned job take less memory; what is planned stays what it is."""
    _IOFile.clone_flags = _slim_flags
    _IOFile.__str__ = _shared_name
    FilePersistence._io_read = _shared_record
    AttributeGuard.__new__ = lambda _, name: _guard(name)
    Namedlist._allowed_overrides = property(lambda _: _OVERRIDABLE, lambda *_: None)
    Job.__init__ = _slim_job
    Reason.__bool__ = _slim_answer
    Job.output_mintime = property(_oldest_output)
    DAG.update_conda_envs = _forget_after_envs
    PersistenceBase.params_changed = _forget_after_params
    DAG.finish = _forget_finished


def look_at_some() -> None:
    """Let the scheduler take its sample of the jobs that are ready before it looks at them, and no others."""
    JobScheduler.open_jobs = property(_some_ready)
    JobScheduler.remaining_jobs = property(_Remaining)


def collect_rarely() -> None:
    """Let Python look for cycles less often, and never among what is there already."""
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
