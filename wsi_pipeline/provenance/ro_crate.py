"""Describes a results folder as a Workflow Run RO-Crate, and checks a folder against its description.

RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) with the profiles Process Run Crate 0.5, Workflow Run Crate 0.5
(https://w3id.org/ro/wfrun) and Workflow RO-Crate 1.0. The results folder is the crate; slides and annotations are
not copied into it but referenced by URI.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from wsi_pipeline.cohort.sheet import load_sheet
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.summary import SYNTHETIC
from wsi_pipeline.io.atomic import atomic_output, write_text
from wsi_pipeline.io.digests import canonical_json, digest_tree
from wsi_pipeline.provenance.checksums import CRATE, Differences, compare_digests, digest_paths, list_contents
from wsi_pipeline.provenance.run_record import RunRecord, read_runs
from wsi_pipeline.provenance.snakemake_metadata import Job, finished_jobs
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.slides import ConvertReceipt, TruthReceipt

log = logging.getLogger(__name__)

Entity = dict[str, Any]

CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
RO_CRATE = "https://w3id.org/ro/crate/1.1"
WORKFLOW_RO_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    WORKFLOW_RO_CRATE: ("Workflow RO-Crate", "1.0"),
}
# Folder inside the crate for copies of the workflow, the config and the sheet.
FOLDER = "provenance"
SNAKEFILE = f"{FOLDER}/workflow/Snakefile"

_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".geojson": "application/geo+json",
    ".html": "text/html",
    ".json": "application/json",
    ".log": "text/plain",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".smk": "text/x-python",
    ".svs": "image/tiff",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".tsv": "text/tab-separated-values",
    ".xml": "application/xml",
}


def write_crate(results: Path, state: Path, threads: int, licence: str, author: str | None = None) -> Path:
    """Write `ro-crate-metadata.json` into a results folder and return its path.

    `state` is Snakemake's folder `.snakemake` of the runs, the source of commands and times of the jobs; `licence` is
    a URI or a text. Raises `StoreError` if the folder holds no results of a run or is not writable.
    """
    runs = read_runs(results)
    if not runs:
        raise StoreError(f"{results}: no record of a run in logs/runs", remedy="Name a folder that Snakemake filled")
    jobs = list(finished_jobs(state)) if (state / "metadata").is_dir() else []
    if not jobs:
        log.warning("%s: no records of jobs, so the crate lacks their commands; see --snakemake", state)
    target = results / CRATE
    try:
        changed = _copy_workflow(results, runs[-1])
        sources = _sources(results, Path(runs[-1]["folder"]))
        inside = digest_paths({name: results / name for name in list_contents(results)}, threads)
        graph = _Graph(results, Path(runs[-1]["folder"]), inside, sources)
        crate = graph.crate(runs, jobs, licence, author, changed)
        write_text(target, canonical_json({"@context": CONTEXT, "@graph": crate}))
    except OSError as error:
        raise StoreError(
            f"{error.filename or results}: {error.strerror}", remedy="The crate is written into the results folder"
        ) from error
    return target


def check_crate(results: Path, threads: int, sources: bool = True) -> Differences:
    """Differences from the checksums in `ro-crate-metadata.json`, with `sources` also of slides and annotations.

    Raises `StoreError` if that file is missing or damaged.
    """
    path = results / CRATE
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))["@graph"]
        known = {one["@id"]: one["sha256"] for one in graph if "sha256" in one}
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing", remedy="Run wsi-pipeline provenance first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: not RO-Crate metadata ({error!r})", remedy="Run wsi-pipeline provenance again"
        ) from error
    inside = {unquote(name): digest for name, digest in known.items() if not urlsplit(name).scheme}
    outside = {_local(name): digest for name, digest in known.items() if urlsplit(name).scheme and sources}
    return compare_digests(results, inside, outside, threads)


def _local(uri: str) -> str:
    split = urlsplit(uri)
    return unquote(split.path) if split.scheme == "file" else uri


def _uri(path: str, folder: Path) -> str:
    return path if "://" in path else (folder / path).absolute().as_uri()


class _Source(NamedTuple):
    """A slide or an annotation; `receipt` is the relative name of that of the job that has read it."""

    digest: str
    description: str
    receipt: str


def _sources(results: Path, folder: Path) -> dict[str, _Source]:
    """The slides and annotations that the results were made from, by URI."""
    found: dict[str, _Source] = {}
    for row in load_sheet(results / FOLDER / "slides.tsv", check_files=False).values():
        place = results / "slides" / row.slide
        if (place / "pyramid.json").is_file():
            pyramid = read_receipt(place / "pyramid.json", ConvertReceipt)
            receipt = f"slides/{row.slide}/pyramid.json"
            found[_uri(row.path, folder)] = _Source(pyramid.source_sha256, f"slide {row.slide}", receipt)
        if row.annotation and (place / "truth.json").is_file():
            digest = read_receipt(place / "truth.json", TruthReceipt).annotation_sha256
            # None if the annotation was added to the sheet after the truth image was made.
            if digest is not None:
                description, receipt = f"annotation of slide {row.slide}", f"slides/{row.slide}/truth.json"
                found[_uri(row.annotation, folder)] = _Source(digest, description, receipt)
    return found


def _copy_workflow(results: Path, run: RunRecord) -> bool:
    """Copy workflow, config and sheet into the crate. Returns whether the workflow has changed since the run."""
    workflow = Path(run["workflow"])
    if not (workflow / "Snakefile").is_file():
        raise StoreError(f"{workflow}: no workflow", remedy="Move the checkout back to where it ran")
    with atomic_output(results / FOLDER) as partial:
        shutil.copytree(workflow, partial / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
        (partial / "config.json").write_text(canonical_json(run["config"]), encoding="utf-8")
        (partial / "slides.tsv").write_text(run["sheet"]["text"], encoding="utf-8", newline="\n")
    changed = digest_tree(results / FOLDER / "workflow") != str(run["workflow_sha256"])
    if changed:
        log.warning("%s: the workflow has changed since the last run, as the crate's description notes", workflow)
    return changed


def _media_type(name: str) -> str:
    return _MEDIA_TYPES.get(Path(name).suffix.lower(), "application/octet-stream")


def _package(name: str) -> str:
    return "https://www.python.org/" if name == "python" else f"https://pypi.org/project/{name}/"


def _own_version(run: RunRecord) -> str:
    return f"{run['wsi_pipeline']} (commit {run['commit']})" if run["commit"] else str(run["wsi_pipeline"])


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _refs(names: Iterable[str]) -> Entity | list[Entity]:
    """References to entities. A single one is not wrapped in a list, as RO-Crate 1.1 recommends."""
    refs = [{"@id": name} for name in names]
    return refs[0] if len(refs) == 1 else refs


class _Graph:
    """Builds the entities of a crate.

    `folder` is the working directory of the runs. `inside`: digests of the results' files and stores by relative
    name, which become their ids. `sources`: slides and annotations by URI.
    """

    def __init__(self, results: Path, folder: Path, inside: dict[str, str], sources: dict[str, _Source]) -> None:
        self._results, self._folder = results.absolute(), folder
        self._inside, self._sources = inside, sources

    def crate(
        self, runs: list[RunRecord], jobs: list[Job], licence: str, author: str | None, changed: bool
    ) -> list[Entity]:
        """All entities; `changed`: the copied workflow is not the one that ran."""
        cohort = runs[-1]["config"]["cohort"]
        actions = [*self._runs(runs, jobs), *(self._job(number, job) for number, job in enumerate(jobs, 1))]
        description = f"Tumour classification of whole-slide images: the cohort {cohort['name']}."
        if cohort["synthetic"]:
            description += f" {SYNTHETIC}."
        if changed:
            description += " The workflow's files were changed after the last run."
        root = {
            "@id": "./",
            "@type": "Dataset",
            "name": f"wsi-pipeline results, {cohort['name']}",
            "description": description,
            "datePublished": _time(datetime.now(UTC).timestamp()),
            "license": {"@id": licence} if "://" in licence else licence,
            "conformsTo": _refs(PROFILES),
            "mainEntity": {"@id": SNAKEFILE},
            "hasPart": _refs([*map(quote, self._inside), *self._sources]),
            "mentions": _refs(action["@id"] for action in actions),
        }
        people: list[Entity] = []
        if author is not None:
            root["author"] = {"@id": "#author"}
            for action in actions:
                action["agent"] = {"@id": "#author"}
            people = [{"@id": "#author", "@type": "Person", "name": author}]
        descriptor = {
            "@id": CRATE,
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": _refs([RO_CRATE, WORKFLOW_RO_CRATE]),
        }
        links = [{"@id": licence, "@type": "CreativeWork", "name": licence}] if "://" in licence else []
        return [descriptor, root, *people, *links, *self._software(runs[-1]), *self._data(runs[-1]), *actions]

    def _software(self, run: RunRecord) -> list[Entity]:
        """Profiles, software and formal parameters of the workflow."""
        profiles = [
            {"@id": uri, "@type": "CreativeWork", "name": name, "version": version}
            for uri, (name, version) in PROFILES.items()
        ]
        packages = [
            {"@id": _package(name), "@type": "SoftwareApplication", "name": name, "softwareVersion": version}
            for name, version in run["versions"].items()
        ]
        for package in packages:
            package["url"] = package["@id"]
        pipeline = {
            "@id": "#wsi-pipeline",
            "@type": "SoftwareApplication",
            "name": "wsi-pipeline",
            "softwareVersion": _own_version(run),
            "softwareRequirements": _refs(str(package["@id"]) for package in packages),
        }
        language = {
            "@id": "https://w3id.org/workflowhub/workflow-ro-crate#snakemake",
            "@type": "ComputerLanguage",
            "name": "Snakemake",
            "identifier": {"@id": "https://doi.org/10.1093/bioinformatics/bts480"},
            "url": {"@id": "https://snakemake.readthedocs.io"},
            "version": run["versions"]["snakemake"],
        }
        parameters = [
            _parameter("#param-config", "config", "File", "Config with all defaults filled in", required=True),
            _parameter("#param-sheet", "sheet", "File", "Slide sheet: path, split, label, annotation", required=True),
            _parameter("#param-slides", "slides", "File", "Slides and annotations", required=True, many=True),
            _parameter("#param-results", "results", "File", "Files written by the workflow", many=True),
            _parameter("#param-stores", "stores", "Dataset", "OME-Zarr and Zarr stores written by it", many=True),
        ]
        return [*profiles, pipeline, *packages, language, *parameters]

    def _data(self, run: RunRecord) -> Iterator[Entity]:
        parameters = {f"{FOLDER}/config.json": "#param-config", f"{FOLDER}/slides.tsv": "#param-sheet"}
        for name, digest in self._inside.items():
            entity: Entity = {"@id": quote(name), "@type": "File", "name": name, "sha256": digest}
            path = self._results / name
            if name.endswith("/"):
                entity["@type"] = "Dataset"
                entity["description"] = "OME-Zarr or Zarr store; SHA-256 over the sorted names and digests of its files"
            else:
                entity["contentSize"] = str(path.stat().st_size)
                entity["encodingFormat"] = _media_type(name)
            if name in parameters:
                entity["exampleOfWork"] = {"@id": parameters[name]}
            elif not name.startswith((f"{FOLDER}/", "logs/")):
                entity["exampleOfWork"] = {"@id": "#param-stores" if name.endswith("/") else "#param-results"}
            if name == SNAKEFILE:
                entity |= self._workflow(run)
            yield entity
        for uri, (digest, description, _) in self._sources.items():
            yield {
                "@id": uri,
                "@type": "File",
                "name": unquote(uri.rsplit("/", 1)[1]),
                "encodingFormat": _media_type(uri),
                "description": description,
                "sha256": digest,
                "exampleOfWork": {"@id": "#param-slides"},
            }

    def _workflow(self, run: RunRecord) -> Entity:
        return {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
            "name": "wsi-pipeline",
            "version": _own_version(run),
            "conformsTo": {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"},
            "programmingLanguage": {"@id": "https://w3id.org/workflowhub/workflow-ro-crate#snakemake"},
            "softwareRequirements": {"@id": "#wsi-pipeline"},
            "license": "Apache-2.0",
            "input": _refs(["#param-config", "#param-sheet", "#param-slides"]),
            "output": _refs(["#param-results", "#param-stores"]),
        }

    def _runs(self, runs: list[RunRecord], jobs: list[Job]) -> list[Entity]:
        """One action per call of Snakemake. Inputs and results are attached to the last one."""
        starts = [datetime.fromisoformat(run["started"]).timestamp() for run in runs]
        actions: list[Entity] = []
        for number, (run, started) in enumerate(zip(runs, starts, strict=True), 1):
            until = starts[number] if number < len(starts) else float("inf")
            ends = [job.ended for job in jobs if started <= job.started < until]
            action: Entity = {
                "@id": f"#run-{number}",
                "@type": "CreateAction",
                "name": f"Run {number} of {len(runs)} of wsi-pipeline",
                "description": f"{run['command']} (on {run['machine']['system']})",
                "instrument": {"@id": SNAKEFILE},
                "startTime": _time(started),
            }
            if ends:
                action["endTime"] = _time(max(ends))
            if number == len(runs):
                action["object"] = _refs([f"{FOLDER}/config.json", f"{FOLDER}/slides.tsv", *self._sources])
                action["result"] = _refs(
                    quote(name) for name in self._inside if not name.startswith((f"{FOLDER}/", "logs/"))
                )
            actions.append(action)
        return actions

    def _job(self, number: int, job: Job) -> Entity:
        results = list(filter(None, map(self._id, job.outputs)))
        return {
            "@id": f"#job-{number}",
            "@type": "CreateAction",
            "name": job.rule,
            "description": job.command,
            "instrument": {"@id": "#wsi-pipeline"},
            "startTime": _time(job.started),
            "endTime": _time(job.ended),
            "object": _refs(dict.fromkeys([*filter(None, map(self._id, job.inputs)), *self._sources_of(results)])),
            "result": _refs(results),
        }

    def _sources_of(self, results: list[str]) -> list[str]:
        """The slide or annotation that a job has read, which is a parameter and no input of its rule."""
        return [uri for uri, source in self._sources.items() if source.receipt in results]

    def _id(self, path: str) -> str | None:
        """The id of a job's input or output, or None if it is not part of the crate."""
        uri = _uri(path, self._folder)
        if uri in self._sources:
            return uri
        try:
            name = (self._folder / path).absolute().relative_to(self._results).as_posix()
        except ValueError:
            return None
        return next((quote(part) for part in (name, f"{name}/") if part in self._inside), None)


def _parameter(
    identifier: str, name: str, kind: str, description: str, *, required: bool = False, many: bool = False
) -> Entity:
    return {
        "@id": identifier,
        "@type": "FormalParameter",
        "additionalType": kind,
        "name": name,
        "description": description,
        "valueRequired": required,
        "multipleValues": many,
        "conformsTo": {"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"},
    }
