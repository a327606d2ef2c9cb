"""What Snakemake's objects keep and say, for test_planning.py: in a process of its own, as their classes are changed.

    python planned_objects.py usual|less FOLDER

FOLDER has files 1 to 3 of different times and `record.json`. Prints the bytes that 1,000 files with flags take, and the
times of the oldest output of a job without a benchmark and with one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import snakemake.api  # noqa: F401 - before snakemake.dag
from snakemake.dag import DAG
from snakemake.io import AnnotatedString, IOCache, _IOFile, ancient, is_flagged
from snakemake.iocontainers import InputFiles
from snakemake.jobs import Job, Reason
from snakemake.pathvars import Pathvars
from snakemake.persistence import NO_PARAMS_CHANGE, PersistenceBase
from snakemake.persistence.file import FilePersistence

job = SimpleNamespace(is_group=lambda: False)
answer: Any = "changed"


def asked(_: object, __: object = None) -> Any:
    """As Snakemake does: what is asked for stays."""
    job._params = job._non_derived_params = job._resources = "made"
    return answer


async def finished(_: object, __: object) -> None:
    asked(_)


DAG.update_conda_envs = PersistenceBase.params_changed = asked
DAG.finish = finished

from wsi_pipeline.planning import keep_less  # noqa: E402 - it takes those above for Snakemake's own

less = sys.argv[1] == "less"
folder = Path(sys.argv[2])
if less:
    keep_less()

# Files and their flags.
workflow = SimpleNamespace(iocache=IOCache(0), storage_settings=None)
rule = SimpleNamespace(workflow=workflow, pathvars=Pathvars(), expand_benchmark=lambda _: None)
files = [_IOFile(f"{folder}/{number}", rule) for number in range(4)]
old = _IOFile(ancient("{slide}"), rule)
tracemalloc.start()
made = [old.apply_wildcards({"slide": str(number)}) for number in range(1000)]
print(tracemalloc.get_traced_memory()[0])
assert all(is_flagged(one, "ancient") and isinstance(one._file, AnnotatedString) for one in made)
made[0].flags["temp"] = True
assert is_flagged(made[0], "temp")
assert not is_flagged(made[1], "temp")
assert not is_flagged(old, "temp")
assert made[3] == "3"
assert hash(made[3]) == hash("3")
assert made[3].format() == str(made[3]) == "3"
assert type(str(made[3])) is str

# Their names in what is recorded.
FilePersistence._record_path = lambda *_: str(folder / "record.json")
records = [FilePersistence._io_read(object.__new__(FilePersistence), "metadata", "x") for _ in range(2)]
assert records[0] == json.loads((folder / "record.json").read_text())
names = [str(files[0]), *(name for record in records for name in (*record["input"], *record["input_checksums"]))]
assert len(names) == 5
assert all(name is names[0] for name in names) == less

# Lists of them.
inputs = InputFiles(fromdict={"index": "a", "b": "c"})
assert inputs.index == "a"
try:
    inputs.sort()
except AttributeError as error:
    assert str(error).startswith("sort() cannot be used")
else:
    raise AssertionError

# The age of a job's outputs.
aged = Job.__new__(Job)
aged.output, aged.rule, aged.wildcards_dict = files[:3], rule, {}
for benchmark in (None, files[3]):
    aged._benchmark = benchmark
    print(asyncio.run(Job.output_mintime.fget(aged)))

# Its reason to run.
reason = Reason()
assert not reason
assert (
    (reason._updated_input is None) == (reason._missing_output is None) == (reason._updated_input_run is None) == less
)
reason.missing_output.update(["a"])
assert reason
assert reason.missing_output == {"a"}


def check_kept() -> None:
    assert [job._params, job._non_derived_params, job._resources] == [None if less else "made"] * 3


# What a job was asked for.
dag = SimpleNamespace(jobs=[job])
asyncio.run(DAG.finish(dag, job))
check_kept()
assert PersistenceBase.params_changed(None, job) == "changed"
check_kept()
answer = ""
assert PersistenceBase.params_changed(None, job) is (NO_PARAMS_CHANGE if less else "")
DAG.update_conda_envs(dag)
check_kept()
