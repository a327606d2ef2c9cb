"""What the rules depend on is visible to Snakemake: two checks of the workflow's own code and of its DAG."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.workflow import CONFIG, PLANS, changed, write_config
from wsi_pipeline.cohort.synthetic import write_cohort
from wsi_pipeline.geometry import Size

pytestmark = pytest.mark.workflow

# Snakemake does not compare params functions that take any of these with those of the last run.
UNTRACKED = {"input", "output", "threads", "resources"}
# Where results lie: neither changes what a job computes.
LOCATIONS = {"RESULTS", "REMOTE", "MODELS", "KEEP"}
# Paths of files whose content is tracked by another parameter of the rule: a fingerprint, or a digest of the rows.
PATHS = {
    "batch_flags": "slides_of_batch",
    "source_path": "fingerprint",
    "annotation_flags": "fingerprint",
    "given_weights": "fingerprint",
    "start_flags": "fingerprint",
    "sheet_path": "rows or flags",
}

LIST_PARAMS = """
include: SNAKEFILE

import dis, inspect, json, types

def data_names(function, seen):
    \"\"\"Global names that a function reads, through all functions of the workflow that it calls.\"\"\"
    found, codes = set(), [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        # Attributes, as of `input`, are no global names.
        for name in {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}:
            value = function.__globals__.get(name)
            if isinstance(value, types.FunctionType):
                if value.__globals__ is function.__globals__ and name not in seen:
                    seen.add(name)
                    found |= data_names(value, seen)
            elif name in function.__globals__ and not isinstance(value, (type, types.ModuleType)):
                found.add(name)
    return found

listed = []
for rule in workflow.rules:
    for name, value in rule.params._allitems():
        if callable(value):
            listed.append((rule.name, name, value.__name__, list(inspect.signature(value).parameters),
                           sorted(data_names(value, set()))))
with open("params.json", "w") as file:
    json.dump(listed, file)
"""

LIST_EDGES = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.io.flags import is_flagged
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings

with SnakemakeApi(OutputSettings(quiet=None)) as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(cores=1),
        config_settings=ConfigSettings(configfiles=[Path("config.yaml")]),
        snakefile=Path(sys.argv[1]),
    )
    workflow.dag().printrulegraph()
    dag = workflow._workflow.dag
    edges = []
    for job in dag.jobs:
        ancient = {str(file) for file in job.input if is_flagged(file, "ancient")}
        for producer, files in dag.dependencies[job].items():
            edges.append((str(producer), str(job), all(str(file) in ancient for file in files)))
Path("edges.json").write_text(json.dumps(edges))
"""

ALL_STAGES = changed(
    heatmap={"slides_per_job": 2, "tiff": True},
    training={"hard_negatives": {"rounds": 1, "per_slide": 20}},
    evaluation={"operating_point": {"rule": "false_positives_per_slide"}, "slide_level": {"score": "forest"}},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cohort, without results."""
    root = tmp_path_factory.mktemp("triggers")
    write_cohort(root / "cohort", PLANS, Size(1536, 1152))
    return root


def run_python(folder: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("config", [CONFIG, ALL_STAGES], ids=["default", "all stages"])
def test_untracked_params_carry_locations_only(folder: Path, config: dict[str, object]) -> None:
    write_config(folder, config)
    snakefile = folder / "params.smk"
    snakefile.write_text(LIST_PARAMS.replace("SNAKEFILE", repr(str(ROOT / "workflow" / "Snakefile"))))
    run_python(folder, "-m", "snakemake", "--snakefile", str(snakefile), "--configfile", "config.yaml", "--list-rules")
    params = json.loads((folder / "params.json").read_text())
    untracked = [row for row in params if UNTRACKED & set(row[3])]
    assert len(untracked) > 10
    for rule, name, function, _, data in untracked:
        carried = set(data) - LOCATIONS
        assert not carried or function in PATHS, f"rule {rule}: {name} carries {carried} past Snakemake"
    for function, tracked in PATHS.items():
        for rule in {row[0] for row in params if row[2] == function}:
            names = {row[1] for row in params if row[0] == rule}
            # A digest of the rows is a plain value, which is not listed.
            assert tracked in names or tracked == "rows or flags"


def test_each_ancient_input_also_counts_by_another_way(folder: Path) -> None:
    # Snakemake skips the reasons of all jobs below one that runs, and an ancient input passes none on.
    write_config(folder, ALL_STAGES)
    run_python(folder, "-c", LIST_EDGES, str(ROOT / "workflow" / "Snakefile"))
    edges = json.loads((folder / "edges.json").read_text())
    producers: dict[str, set[str]] = {}
    for producer, job, ancient in edges:
        if not ancient:
            producers.setdefault(job, set()).add(producer)

    def upstream(job: str) -> set[str]:
        found: set[str] = set()
        waiting = [job]
        while waiting:
            new = producers.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    ancient_only = [(producer, job) for producer, job, ancient in edges if ancient]
    assert ancient_only
    for producer, job in ancient_only:
        assert producer in upstream(job), f"{job} would miss a change of {producer}"
