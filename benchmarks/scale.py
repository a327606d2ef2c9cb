"""Scale: how long Snakemake takes to plan the jobs of many slides, and what it adds to each job that it runs.

    python benchmarks/scale.py [--slides 400 2000 10000] [--before CHECKOUT] [--stat-ms 5] [--run 400 2000]

Slides and results are empty files; two thirds of the slides train, a third is tested. "Nothing to do" is with all
results there and all jobs recorded as finished, as after a real run. Prints Markdown tables.

`--before`: another checkout with an environment of its own (`.venv`), measured in turn with this one.
`--stat-ms`: adds milliseconds to each `stat` of a slide or result, as a busy shared file system does; needs gcc.
`--run`: runs all jobs of these numbers of slides on two cores, each of them a shell function that makes its files; of
more than 2,000 slides only with the profile's sample of ready jobs, as looking at all of them takes hours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The largest cohort, in slides, that is also run without subsampling of the ready jobs.
MAX_SLIDES_UNSAMPLED = 2000
CONFIG = """
results: results
cohort: {name: scale, slides: slides.tsv}
training: {start: random}
"""

# Makes all files of a plan, empty and of the same time, and records all jobs as finished, as Snakemake itself does
# after each. Patches Snakemake, in this process only, as `--touch` takes 0.1 s a job.
RECORD = """
import os
import sys
import time
import snakemake.cli
from snakemake.workflow import Workflow

build = Workflow._build_dag
now = time.time()

def make(file, directory):
    os.makedirs(file if directory else os.path.dirname(file), exist_ok=True)
    if not directory:
        open(file, "w").close()
    os.utime(file, (now, now))

def built(self, *arguments, **keywords):
    done = build(self, *arguments, **keywords)
    async def note():
        for job in self.dag.jobs:
            for file in job.output:
                make(file, file.is_directory)
            for file in [job.benchmark] if job.benchmark else []:
                make(file, False)
        for job in self.dag.jobs:
            await self.persistence.finished(job)
    self.async_run(note())
    return done

Workflow._build_dag = built
snakemake.cli.main(sys.argv[1:])
"""

# What stands in for the package in a real run: it makes the files of a stage, and costs next to nothing.
STAGE = r"""() {
    local stage=$1 output= slide= name
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --store) mkdir -p "$2" ;;
            --picture) : > "$2"; : > "${2%.png}.pdf" ;;
            --receipt | --counts | --index | --geojson) : > "$2" ;;
            # Elsewhere this is the folder.
            --detections) [ "$stage" != detect ] || : > "$2" ;;
            --output) output=$2 ;;
            --slide) slide=$2 ;;
            results/manifests/*) : > "$1" ;;
        esac
        shift
    done
    case $stage in
        heatmap) mkdir -p "$output/$slide.ome.zarr"; : > "$output/$slide.json" ;;
        train)
            for name in {weights,last}.safetensors model.json history.csv {curves,augmented}.{png,pdf}; do
                : > "$output/$name"
            done ;;
        evaluate)
            mkdir -p "$output"
            for name in metrics.json {roc,roc_band,pr,froc,reliability,slides}.csv \
                {roc,pr,froc,reliability,confusion,cohort}.{png,pdf}; do
                : > "$output/$name"
            done ;;
        report) : > "$output"; mkdir -p "${output%.html}" ;;
    esac
}"""


def make_cohort(folder: Path, count: int) -> None:
    """A sheet of so many slides, all of them empty files."""
    rows = ["slide\tpath\tsplit\tlabel\tannotation"]
    (folder / "slides").mkdir()
    for number in range(count):
        split = ("train", "train", "test")[number % 3]
        label = "tumor" if number % 2 else "normal"
        annotation = f"slides/{number}.xml" if label == "tumor" else ""
        rows.append(f"s{number:05d}\tslides/{number}.tif\t{split}\t{label}\t{annotation}")
        (folder / "slides" / f"{number}.tif").touch()
        if annotation:
            (folder / annotation).touch()
    (folder / "slides.tsv").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text(CONFIG)


@dataclass(frozen=True)
class Call:
    """What a call of Snakemake printed and took. CPU time, as others may use the machine; `stats` of cohort files."""

    text: str
    wall_s: float
    cpu_s: float
    peak_mib: float
    stats: int


def snakemake(
    folder: Path,
    *arguments: str,
    checkout: Path = ROOT,
    slow: dict[str, str] | None = None,
    program: tuple[str, ...] = ("-m", "snakemake"),
) -> Call:
    python = sys.executable if checkout == ROOT else str(checkout / ".venv" / "bin" / "python")
    command = [python, *program, "--snakefile", str(checkout / "workflow" / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml"), "--cores", "2", *arguments]
    # In a process of its own, as the peak is that of all children so far.
    code = (
        "import json, resource, subprocess, sys, time\n"
        "began = time.perf_counter()\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.stdout + done.stderr, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))\n"
        "sys.exit(done.returncode)"
    )
    environment = {**os.environ, "BASH_FUNC_wsi-pipeline%%": STAGE, "BASH_FUNC_exec%%": '() { "$@"; }'}
    counted = folder / "stats.txt"
    counted.unlink(missing_ok=True)
    # Only Snakemake itself, and not the process that measures it.
    command = ["env", *(f"{name}={value}" for name, value in (slow or {}).items()), *command]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-2000:])
    text, *figures = json.loads(done.stdout)
    return Call(text, *figures, sum(map(int, counted.read_text().split())) if counted.exists() else 0)


def shim(folder: Path, stat_ms: float, cohort: Path) -> dict[str, str]:
    """Environment of a process whose stats of a cohort's files are counted and delayed."""
    library = folder / "slow_stat.so"
    if not library.exists():
        source = Path(__file__).with_name("slow_stat.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)  # noqa: S603, S607
    delay_us = str(int(stat_ms * 1000))
    return {
        "LD_PRELOAD": str(library),
        "STAT_FOLDER": str(cohort),
        "STAT_DELAY_US": delay_us,
        "STAT_COUNT": str(cohort / "stats.txt"),
    }


def planned(count: int, checkout: Path, stat_ms: float) -> str:
    """A row of the table of plans."""
    with tempfile.TemporaryDirectory() as name:
        folder, cohort = Path(name), Path(name, "cohort")
        cohort.mkdir()
        make_cohort(cohort, count)
        slow = shim(folder, stat_ms, cohort) if stat_ms else None

        def plan() -> Call:
            return snakemake(cohort, "--dry-run", "--quiet", "rules", checkout=checkout, slow=slow)

        first = plan()
        found = re.search(r"^total\s+(\d+)", first.text, re.MULTILINE)
        snakemake(cohort, "--dry-run", "--quiet", checkout=checkout, program=("-c", RECORD))
        again = plan()
        idle = "Nothing to be done" in again.text and "missing provenance" not in again.text
        cells = [f"{count:,}", checkout.name, found[1] if found else "?"]
        for call in (first, again):
            cells += [f"{call.cpu_s:.1f}", f"{call.wall_s:.0f}", f"{call.peak_mib:.0f}"]
            cells += [f"{call.stats:,}"] if stat_ms else []
        return f"| {' | '.join(cells)} |{'' if idle else ' (not idle!)'}"


def run(count: int) -> str:
    """A row of the table of runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cohort(folder, count)
        taken = {}
        methods = {"profile": ("--scheduler-subsample", "200"), "all": ()}
        if count > MAX_SLIDES_UNSAMPLED:
            del methods["all"]
        for title, options in methods.items():
            shutil.rmtree(folder / "results", ignore_errors=True)
            shutil.rmtree(folder / ".snakemake", ignore_errors=True)
            call = snakemake(folder, "--scheduler", "greedy", *options)
            taken[title] = call.wall_s
        jobs = int(re.findall(r"^total\s+(\d+)", call.text, re.MULTILINE)[0])
        per_job = {title: f"{1000 * seconds / jobs:.0f}" for title, seconds in taken.items()}
        return f"| {count} | {jobs} | {taken['profile']:.0f} | {per_job['profile']} | {per_job.get('all', '')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, nargs="*", default=[400, 2000, 10000])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--stat-ms", type=float, default=0.0)
    parser.add_argument("--run", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    checkouts = [ROOT] if arguments.before is None else [arguments.before.resolve(), ROOT]
    per_plan = ["CPU, s", "wall, s", "peak, MiB", *(["stats"] if arguments.stat_ms else [])]
    columns = ["slides", "checkout", "jobs"]
    columns += [f"{name}: {figure}" for name in ("first plan", "nothing to do") for figure in per_plan]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for count in arguments.slides:
        for checkout in checkouts:
            print(planned(count, checkout, arguments.stat_ms), flush=True)
    if arguments.run:
        print("\n| slides | jobs | run, s | a job, ms | a job, without subsampling, ms |\n|---|---|---|---|---|")
    for count in arguments.run:
        print(run(count), flush=True)


if __name__ == "__main__":
    sys.exit(main())
