"""Planning: how long Snakemake takes to know the jobs of many slides, before the first run and when nothing is to do.

    python benchmarks/scale.py [--slides 400 2000 10000]

Slides and, for the second case, all results are empty files; two thirds of the slides train, a third is tested. Prints
a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = """
results: results
cohort: {name: scale, slides: slides.tsv}
training: {start: random}
"""


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


def snakemake(folder: Path, *arguments: str) -> tuple[str, float, float]:
    """Output, seconds and peak MiB of a call."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml"), "--cores", "2", *arguments]
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "print(done.stdout + done.stderr)\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
        "sys.exit(done.returncode)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)  # noqa: S603
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, nargs="+", default=[400, 2000, 10000])
    arguments = parser.parse_args()
    print("| slides | jobs | first plan, s | peak, MiB | nothing to do, s | peak, MiB |\n|---|---|---|---|---|---|")
    for count in arguments.slides:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_cohort(folder, count)
            text, first, first_peak = snakemake(folder, "--dry-run", "--quiet", "rules")
            found = re.search(r"^total\s+(\d+)", text, re.MULTILINE)
            jobs = found[1] if found else "?"
            summary, _, _ = snakemake(folder, "--summary")
            make_results(folder, summary)
            text, again, again_peak = snakemake(folder, "--dry-run", "--quiet", "rules")
            idle = "Nothing to be done" in text
            print(
                f"| {count} | {jobs} | {first:.1f} | {first_peak:.0f} | {again:.1f}{'' if idle else ' (not idle!)'} "
                f"| {again_peak:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
