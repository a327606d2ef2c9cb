"""Every stage under every fault: no partial output may look complete, and the next attempt gives the same bytes.

The commands are those of a finished run of the workflow. Each runs in a copy of that run without its outputs, in a
child of a process with preloaded libraries.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.faults import FullDisk, KillBefore, Outcome, RunningChild, child
from helpers.workflow import CONFIG
from wsi_pipeline import config
from wsi_pipeline.config.loading import load_config, options_json
from wsi_pipeline.io.atomic import remove
from wsi_pipeline.io.digests import digest_file, digest_tree
from wsi_pipeline.provenance.snakemake_metadata import finished_jobs

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

KILLED = -signal.SIGKILL
# Reading it at offset 0 fails with EIO in the kernel.
UNREADABLE = "/proc/self/mem"
HEATMAPS = "results/heatmaps/inception_v3"
TRAINED_ON = "normal-1"
PATCHES = tuple(f"results/slides/{TRAINED_ON}/patches.{kind}" for kind in ("json", "zarr", "parquet"))
EVALUATED = tuple(
    f"results/{name}"
    for name in (
        "scores/inception_v3/tumor-3.json",
        "scores/inception_v3/tumor-3.parquet",
        "confusion/inception_v3/tumor-3.json",
        "detections/inception_v3/tumor-3.json",
    )
)
MODEL_FLAGS = (
    *("--slides", "results/slides", "--output", HEATMAPS),
    *("--model", "results/model/inception_v3/model.json"),
    *("--weights", "results/model/inception_v3/weights.safetensors"),
)


@dataclass(frozen=True)
class Stage:
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["wsi_pipeline.cli.app", "torch", "zarr", "pandas", "pyarrow.parquet", "sklearn.metrics"]
    )
    return context


@pytest.fixture(scope="module")
def cohort(finished: Path, processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with the heatmap of a training slide, which otherwise only hard negatives need."""
    command = ("wsi-pipeline", "heatmap", "--slide", TRAINED_ON, *MODEL_FLAGS, "--options", options("heatmap"))
    made = tuple(f"{HEATMAPS}/{TRAINED_ON}{suffix}" for suffix in (".ome.zarr", ".json"))
    run = Bench(finished, tmp_path_factory.mktemp("cohort"), Stage(command, (), made), processes)
    ended = run.attempt()
    assert ended.code == 0, ended.output
    return run.folder


@pytest.fixture(scope="module")
def stages(finished: Path) -> dict[str, Stage]:
    """Each stage with a command of the finished run, preferably of a slide with tumour."""
    found: dict[str, Stage] = {}
    for job in finished_jobs(finished / ".snakemake"):
        commands = job.command.removeprefix("exec ").split(" && ")
        for text in commands:
            command = shlex.split(re.split(" >>? results/logs/", text)[0])
            made = [path for path in job.outputs if "/logs/" not in path]
            if len(commands) > 1:
                made = [path for path in made if path in command]
            if command[1] not in found or "tumor-" in text:
                found[command[1]] = Stage(tuple(command), job.inputs, tuple(made))
    # Inputs that Snakemake tracks through manifests.
    for name, paths in (("train", PATCHES), ("evaluate", EVALUATED)):
        found[name] = replace(found[name], inputs=(*found[name].inputs, *paths))
    return found | {"export": export(), "predict": predict(), "negatives": negatives()}


def options(stage: str) -> str:
    return options_json(config.STAGES[stage].of(load_config(CONFIG)))


def heatmap_of(slide: str) -> dict[str, str]:
    return {"--heatmap": f"{HEATMAPS}/{slide}.ome.zarr", "--heatmap-receipt": f"{HEATMAPS}/{slide}.json"}


def stage(name: str, inputs: dict[str, str], outputs: dict[str, str], *more: str) -> Stage:
    flags = [text for flag in (inputs | outputs).items() for text in flag]
    return Stage(("wsi-pipeline", name, *flags, *more), tuple(inputs.values()), tuple(outputs.values()))


def export() -> Stage:
    return stage("export", heatmap_of("tumor-3"), {"--tiff": f"{HEATMAPS}/tumor-3.tif"})


def negatives() -> Stage:
    folder, made = f"results/slides/{TRAINED_ON}", f"results/negatives/inception_v3/{TRAINED_ON}"
    inputs = {f"--{name}": f"{folder}/{name}.ome.zarr" for name in ("pyramid", "tissue", "truth")}
    outputs = {"--store": f"{made}.zarr", "--index": f"{made}.parquet", "--receipt": f"{made}.json"}
    flags = ("--slide", TRAINED_ON, "--options", options("negatives"), "--threads", "2")
    return stage("negatives", inputs | heatmap_of(TRAINED_ON), outputs, *flags)


def predict() -> Stage:
    receipt = f"{HEATMAPS}/batches/0000.json"
    command = ("wsi-pipeline", "predict", "--slide", "tumor-3", "--slide", "normal-3", *MODEL_FLAGS)
    inputs = tuple(f"results/slides/tumor-3/{name}" for name in ("pyramid.ome.zarr", "pyramid.json", "tissue.ome.zarr"))
    model = ("results/model/inception_v3/model.json", "results/model/inception_v3/weights.safetensors")
    arguments = ("--receipt", receipt, "--options", options("predict"), "--threads", "2")
    return Stage((*command, *arguments), (*inputs, *model), (receipt,))


@pytest.fixture(scope="module")
def wanted(cohort: Path, stages: dict[str, Stage], processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Digests of the outputs of a stage, from an undisturbed attempt."""
    known: dict[str, dict[str, str]] = {}

    def digests(name: str) -> dict[str, str]:
        if name not in known:
            run = Bench(cohort, tmp_path_factory.mktemp("wanted"), stages[name], processes)
            ended = run.attempt()
            assert ended.code == 0, ended.output
            known[name] = run.digests()
            assert set(known[name]) == set(stages[name].outputs)
            for path in stages[name].outputs:
                if (cohort / path).exists():
                    assert known[name][path] == digest(cohort / path), path
        return known[name]

    return digests


def digest(path: Path) -> str:
    return digest_tree(path) if path.is_dir() else digest_file(path)


class Bench:
    """A copy of the finished run without the outputs of one stage."""

    def __init__(self, finished: Path, folder: Path, stage: Stage, processes: Any) -> None:
        self.folder, self.stage, self.processes, self.attempts = folder / "run", stage, processes, 0
        # Hard links are safe: outputs are written under temporary names, never into a file of the finished run.
        shutil.copytree(finished, self.folder, copy_function=os.link, ignore=shutil.ignore_patterns("attempt-*"))
        for path in stage.outputs:
            remove(self.folder / path)
        for path in self.folder.rglob("*.raw.npz"):
            path.unlink()

    def start(self, fault: Callable[[], None] | None = None) -> RunningChild:
        self.attempts += 1
        pipe = self.folder / f"attempt-{self.attempts}"
        os.mkfifo(pipe)
        arguments = (str(self.folder), self.stage.command, str(pipe), fault)
        process = self.processes.Process(target=child, args=arguments)
        process.start()
        return RunningChild(process, pipe)

    def attempt(self, fault: Callable[[], None] | None = None) -> Outcome:
        return self.start(fault).end()

    def digests(self) -> dict[str, str]:
        return {path: digest(self.folder / path) for path in self.stage.outputs if (self.folder / path).exists()}

    def check_no_partial_output(self, wanted: dict[str, str]) -> None:
        metrics = "results/evaluation/inception_v3/metrics.json"
        written = self.folder / metrics
        if metrics in self.stage.outputs and written.exists() and '"complete": false' in written.read_text():
            # The metrics name slides without results, and Snakemake deletes the outputs of a failed job.
            self.check_incomplete_evaluation(json.loads(written.read_text()))
            return
        for path, found in self.digests().items():
            assert found == wanted[path], f"{path} is incomplete"

    def check_incomplete_evaluation(self, metrics: dict[str, Any]) -> None:
        """Assert that every output is whole and belongs to these metrics of the slides with results."""
        assert len(metrics["cohort"]["missing"]) == 1
        tables = metrics["provenance"]["tables_sha256"]
        assert set(tables) == {Path(path).name for path in self.stage.outputs if path.endswith(".csv")}
        for path in map(self.folder.joinpath, self.stage.outputs):
            if path.suffix == ".csv":
                assert digest_file(path) == tables[path.name], f"{path} is not of these metrics"
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix == ".pdf":
                content = path.read_bytes()
                assert content.startswith(b"%PDF") and content.endswith(b"%%EOF\n"), f"{path} is incomplete"

    def check_next_attempt(self, wanted: dict[str, str]) -> None:
        ended = self.attempt()
        assert ended.code == 0, ended.output
        assert self.digests() == wanted
        for path in self.stage.outputs:
            assert not list((self.folder / path).parent.glob(f".partial-*{Path(path).name}"))


def check_error_line(ended: Outcome) -> None:
    """Assert exit code 2, one line that names the error, and no traceback."""
    assert ended.code == 2, ended.output
    assert "Traceback" not in ended.output
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.output


STAGES = tuple(config.STAGES)


# Stages that take minutes each; `make nightly` runs them.
LONG = ("train", "evaluate", "report", "confusion")
# CI runs one kind: the one that a stage has to detect itself, because neither open nor read fails.
BAD_INPUTS = (
    pytest.param("read error", marks=pytest.mark.nightly),
    "truncated",
    pytest.param("missing", marks=pytest.mark.nightly),
)


def each_stage(*long: str) -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=[pytest.mark.nightly] if name in long else []) for name in STAGES]
    return pytest.mark.parametrize("name", marked)


@pytest.fixture
def bench(cohort: Path, stages: dict[str, Stage], processes: Any, tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    yield lambda name: Bench(cohort, tmp_path, stages[name], processes)


@each_stage("train")
def test_a_kill_before_any_rename_leaves_no_partial_output(
    bench: Callable[[str], Bench], wanted: Any, name: str
) -> None:
    run = bench(name)
    number = 1
    while (ended := run.attempt(KillBefore(number))).code == KILLED:
        run.check_no_partial_output(wanted(name))
        number += 1
    # Killed before each of its outputs in turn, and then run to the end.
    assert ended.code == 0, ended.output
    assert number > 1
    assert run.digests() == wanted(name)


@each_stage()
def test_a_full_disk_gives_one_error_line(bench: Callable[[str], Bench], wanted: Any, name: str) -> None:
    run = bench(name)
    for size in (0, 50, 1000, 20_000):
        ended = run.attempt(FullDisk(size))
        if ended.code == 0:
            break
        check_error_line(ended)
        assert "Free space" in ended.output
        run.check_no_partial_output(wanted(name))
    run.check_next_attempt(wanted(name))


@pytest.mark.parametrize("fault", BAD_INPUTS)
@each_stage(*LONG)
def test_bad_inputs_are_reported(bench: Callable[[str], Bench], wanted: Any, name: str, fault: str) -> None:
    """Each input in turn; of a store, its metadata and its largest chunk."""
    run = bench(name)
    for path in one_of_each(run.stage.inputs):
        for file in parts_of(run.folder / path):
            kept = run.folder / "kept"
            file.rename(kept)
            if fault == "read error":
                file.symlink_to(UNREADABLE)
            elif fault == "truncated":
                file.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
            ended = run.attempt()
            if ended.code != 0:
                check_error_line(ended)
                run.check_no_partial_output(wanted(name))
            else:
                # The stage did not read this file, or can do without it: the report shows the receipts of slides and
                # model that exist, and predict leaves a slide that it cannot predict to the slide's heatmap job.
                is_optional = path.startswith(("results/slides/", "results/model/"))
                known = name == "report" and fault == "missing" and is_optional
                known |= name == "predict" and "left out here" in ended.output
                assert known or run.digests() == wanted(name), f"{fault} of {file} went unnoticed"
            file.unlink(missing_ok=True)
            kept.rename(file)
            for output in run.stage.outputs:
                remove(run.folder / output)
    run.check_next_attempt(wanted(name))


def one_of_each(paths: tuple[str, ...]) -> list[str]:
    """Paths without those that differ only in the slide."""
    return list({re.sub(r"(normal|tumor)-\d", "", path): path for path in paths}.values())


def parts_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    chunks = [p for p in path.rglob("*") if p.is_file() and p.name not in ("zarr.json", ".snakemake_timestamp")]
    return [path / "zarr.json", max(chunks, key=lambda p: (p.stat().st_size, str(p)))]


@each_stage("train")
def test_two_concurrent_attempts_leave_no_partial_output(bench: Callable[[str], Bench], wanted: Any, name: str) -> None:
    run = bench(name)
    both = [one.end() for one in [run.start(), run.start()]]
    assert any(ended.code == 0 for ended in both), both
    for ended in both:
        if ended.code != 0:
            check_error_line(ended)
    run.check_no_partial_output(wanted(name))
    run.check_next_attempt(wanted(name))
