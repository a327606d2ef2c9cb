"""Scale: how long Snakemake takes to know the jobs of many slides, and what it adds to each job that it runs.

    python benchmarks/scale.py [--slides 400 2000 10000] [--run 400 2000]

Slides and results are empty files; two thirds of the slides train, a third is tested. "Nothing to do" is with all
results there and all jobs recorded as finished, as after a real run. `--run`: for these numbers of slides all jobs are
run on two cores, each of them a shell function that makes its files; of more than 2,000 slides not with all ready jobs
looked at, which takes hours. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Slides.
MOST_LOOKED_AT = 2000
CONFIG = """
results: results
cohort: {name: scale, slides: slides.tsv}
training: {start: random}
"""


# A dry run that notes all jobs as finished, as Snakemake does when they are.
RECORD = """
import sys
import snakemake.cli
from snakemake.workflow import Workflow

build = Workflow._build_dag

def built(self, *arguments, **keywords):
    done = build(self, *arguments, **keywords)
    async def note():
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
            --receipt | --counts | --index | --detections | --geojson) [ -d "$2" ] || : > "$2" ;;
            --output) output=$2 ;;
            --slide) slide=$2 ;;
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


def snakemake(
    folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "snakemake")
) -> tuple[str, float, float]:
    """Output, seconds and peak MiB of a call."""
    command = [sys.executable, *program, "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml"), "--cores", "2", *arguments]
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "print(done.stdout + done.stderr)\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
        "sys.exit(done.returncode)"
    )
    environment = {**os.environ, "BASH_FUNC_wsi-pipeline%%": STAGE, "BASH_FUNC_exec%%": '() { "$@"; }'}
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, env=environment
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    text, peak = done.stdout.rsplit("PEAK", 1)
    return text, seconds, float(peak)


def make_results(folder: Path, summary: str) -> int:
    """All files that a summary names, empty and of the same time; returns how many."""
    now = time.time()
    names = [line.split("\t")[0] for line in summary.splitlines() if line.startswith("results/")]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".zarr"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
        os.utime(path, (now, now))
    return len(names)


def planned(count: int) -> str:
    """A row of the table of plans."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cohort(folder, count)
        text, first, first_peak = snakemake(folder, "--dry-run", "--quiet", "rules")
        found = re.search(r"^total\s+(\d+)", text, re.MULTILINE)
        jobs = found[1] if found else "?"
        summary, _, _ = snakemake(folder, "--summary")
        make_results(folder, summary)
        snakemake(folder, "--dry-run", "--quiet", program=("-c", RECORD))
        text, again, again_peak = snakemake(folder, "--dry-run", "--quiet", "rules")
        idle = "Nothing to be done" in text and "missing provenance" not in text
        seconds = f"{again:.1f}{'' if idle else ' (not idle!)'}"
        return f"| {count} | {jobs} | {first:.1f} | {first_peak:.0f} | {seconds} | {again_peak:.0f} |"


def run(count: int) -> str:
    """A row of the table of runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cohort(folder, count)
        taken = {}
        ways = {"profile": ("--scheduler-subsample", "200"), "all": ()}
        if count > MOST_LOOKED_AT:
            del ways["all"]
        for title, options in ways.items():
            shutil.rmtree(folder / "results", ignore_errors=True)
            shutil.rmtree(folder / ".snakemake", ignore_errors=True)
            text, taken[title], _ = snakemake(folder, "--scheduler", "greedy", *options)
        jobs = int(re.findall(r"^total\s+(\d+)", text, re.MULTILINE)[0])
        per_job = {title: f"{1000 * seconds / jobs:.0f}" for title, seconds in taken.items()}
        return f"| {count} | {jobs} | {taken['profile']:.0f} | {per_job['profile']} | {per_job.get('all', '')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, nargs="*", default=[400, 2000, 10000])
    parser.add_argument("--run", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    print("| slides | jobs | first plan, s | peak, MiB | nothing to do, s | peak, MiB |\n|---|---|---|---|---|---|")
    for count in arguments.slides:
        print(planned(count), flush=True)
    print("\n| slides | jobs | run, s | a job, ms | a job, all ready ones looked at, ms |\n|---|---|---|---|---|")
    for count in arguments.run:
        print(run(count), flush=True)


if __name__ == "__main__":
    sys.exit(main())
