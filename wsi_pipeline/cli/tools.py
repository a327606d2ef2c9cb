"""Commands that are not stages: plans, annotations, comparison, viewer, provenance, predictions, cohorts, configs."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_pipeline.cli import annotation_check, comparison
from wsi_pipeline.config.base import LesionProtocol
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import canonical_json
from wsi_pipeline.stages.arguments import SnakemakeFolder, Threads

app = typer.Typer()
app.command("check-annotation")(annotation_check.command)
app.command("compare")(comparison.command)

# Measured with Inception-v3 at 299 px on two CPU cores (docs/benchmarks.md).
CPU_PATCHES_PER_SECOND = 16.0

Json = Annotated[Path | None, typer.Option("--json", help="JSON file to write.")]
Seed = Annotated[int, typer.Option(help="Seed of the random draws.")]


@app.command()
def plan(
    sheet: Annotated[Path, typer.Argument(help="The slide sheet.", readable=False)],
    config: Annotated[Path | None, typer.Option(help="Config file (YAML); missing keys take their defaults.")] = None,
    rate: Annotated[
        float, typer.Option(min=0.001, help="Patches per second of your GPU or CPU, to estimate times.")
    ] = CPU_PATCHES_PER_SECOND,
    output: Json = None,
    threads: Threads = 4,
) -> None:
    """Estimate disk space and time for a cohort and check its slides before a run; exit code 2 if there are errors."""
    from wsi_pipeline.cohort.estimate import estimate_cohort, format_estimate
    from wsi_pipeline.cohort.sheet import load_sheet
    from wsi_pipeline.config.loading import load_config, read_yaml

    loaded = load_config({} if config is None else read_yaml(config))
    slides = load_sheet(sheet, exclude=loaded.cohort.exclude, check_files=False)
    found = estimate_cohort(slides, loaded, threads)
    _print_and_write(format_estimate(found, rate), found.as_json(), output)
    if any(problem.error for problem in found.problems):
        raise typer.Exit(2)


@app.command()
def summary(
    metrics: Annotated[Path, typer.Argument(help="metrics.json of an evaluation.")],
    report: Annotated[Path, typer.Argument(help="Its report.html.")],
) -> None:
    """Print the main figures of an evaluation, the path of its report, and the command to view its slides."""
    from wsi_pipeline.evaluation.summary import summary_text

    print(summary_text(metrics, report))
    print(f"slides: {sys.argv[0]} view {shlex.quote(str(report.parent))}")


@app.command()
def view(
    results: Annotated[Path, typer.Argument(help="Results folder of a finished or running workflow.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 picks a free one.")] = 8000,
) -> None:
    """Show slides at full resolution with truth, heatmaps and errors, in a browser on this machine."""
    from wsi_pipeline.view.server import serve

    serve(results, port)


@app.command()
def provenance(
    results: Annotated[Path, typer.Argument(help="Results folder of the workflow.")],
    state: SnakemakeFolder = Path(".snakemake"),
    licence: Annotated[
        str,
        typer.Option("--license", help="License of the results, such as https://creativecommons.org/licenses/by/4.0/"),
    ] = "All rights reserved",
    author: Annotated[str | None, typer.Option(help="Author of the results.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Number of files read at once.")] = 4,
) -> None:
    """Describe results as a Workflow Run RO-Crate: inputs, config, versions, commands and outputs, with checksums."""
    from wsi_pipeline.provenance.ro_crate import write_crate

    path = write_crate(results, state, threads, licence, author)
    logging.info("%s: written; publish the whole folder, for example as a zip file", path)


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(help="Results folder with ro-crate-metadata.json.")],
    sources: Annotated[bool, typer.Option(help="Check the slides and annotations too.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Number of files read at once.")] = 4,
) -> None:
    """Compare all files with the checksums that `provenance` recorded; exit code 1 if there are differences."""
    from wsi_pipeline.provenance.ro_crate import check_crate

    differences = check_crate(results, threads, sources)
    print(differences.text())
    if differences:
        raise typer.Exit(1)


@app.command()
def froc(
    detections: Annotated[Path, typer.Argument(help="Folder with a CSV file (confidence,x,y) per slide.")],
    masks: Annotated[Path, typer.Argument(help="Folder with a TIFF or PNG mask per slide with tumour.")],
    mpp: Annotated[float, typer.Option(min=0.01, help="Scale of level 0, um per pixel.")] = 0.243,
    level: Annotated[int, typer.Option(min=0, max=16, help="Pyramid level of the masks, downsampled by 2^level.")] = 5,
    protocol: Annotated[
        LesionProtocol, typer.Option(help="camelyon16 allows no other scale and level than its own.")
    ] = "slide_scale",
    exclude: Annotated[list[str] | None, typer.Option(help="Slides to leave out.")] = None,
    output: Json = None,
) -> None:
    """Evaluate detections of any system by the FROC of Camelyon16."""
    from wsi_pipeline.config import IntervalOptions, LesionLevelOptions
    from wsi_pipeline.evaluation.external import external_froc, froc_text

    figures = external_froc(
        detections,
        masks,
        mpp=mpp,
        level=level,
        exclude=exclude or [],
        options=LesionLevelOptions(protocol=protocol),
        interval=IntervalOptions(),
    )
    _print_and_write(froc_text(figures), figures, output)


@app.command()
def roc(
    scores: Annotated[Path, typer.Argument(help="CSV file with the columns slide, score, label.")],
    against: Annotated[Path | None, typer.Option(help="CSV file of a second model on the same slides.")] = None,
    output: Json = None,
    permutations: Annotated[int, typer.Option(min=100, help="Number of permutations of the comparison.")] = 10_000,
    seed: Seed = 1,
) -> None:
    """Evaluate slide scores of any system by ROC AUC, and compare two models."""
    from wsi_pipeline.config import IntervalOptions
    from wsi_pipeline.evaluation.external import external_roc, roc_text

    figures = external_roc(scores, against, interval=IntervalOptions(), seed=seed, permutations=permutations)
    _print_and_write(roc_text(figures), figures, output)


def _print_and_write(text: str, figures: dict[str, Any], output: Path | None) -> None:
    print(text)
    if output is not None:
        write_text(output, canonical_json(figures))


@app.command("imagenet-weights")
def imagenet_weights(
    output: Annotated[Path, typer.Argument(help="File to write, inception_v3_google-0cc3c7bd.pth.")],
    url: Annotated[str | None, typer.Option(help="Download from this URL instead.")] = None,
) -> None:
    """Download torchvision's ImageNet weights and check their SHA-256."""
    from wsi_pipeline.model.imagenet import download_imagenet

    download_imagenet(output, url)


@app.command("demo-cohort")
def demo_cohort(folder: Annotated[Path, typer.Argument(help="Folder to write into.")]) -> None:
    """Write the demo cohort: 12 small synthetic slides, their annotations and the slide sheet."""
    from wsi_pipeline.cohort.synthetic import write_cohort

    sheet = write_cohort(folder)
    logging.info("12 synthetic slides, sheet %s", sheet)


@app.command("camelyon16-sheet")
def camelyon16_sheet(
    reference: Annotated[
        Path, typer.Argument(help="Table of labels of the data set (image, type, center).", readable=False)
    ],
    output: Annotated[Path, typer.Argument(help="Slide sheet to write.")],
    folder: Annotated[
        str, typer.Option(help="Folder or s3:// prefix with images/ and annotations/.")
    ] = "s3://camelyon-dataset/CAMELYON16",
    validation_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the training slides used for validation.")
    ] = 0.2,
) -> None:
    """Write the slide sheet of Camelyon16, for config/camelyon16.yaml."""
    from wsi_pipeline.cohort.camelyon16 import write_sheet

    count = write_sheet(reference, folder, output, validation_share)
    logging.info("%d slides, sheet %s", count, output)


@app.command("config")
def config_files(
    defaults: Annotated[Path, typer.Option(help="YAML file to write, with all keys and their defaults.")],
    schema: Annotated[Path, typer.Option(help="JSON schema to write.")],
) -> None:
    """Write the files that are generated from the config models."""
    from wsi_pipeline.config.generated import defaults_yaml, schema_json

    defaults.write_text(defaults_yaml(), encoding="utf-8")
    schema.write_text(schema_json(), encoding="utf-8")
