"""Results that were computed from another config, sheet or slide than those of the current run.

Snakemake reruns their jobs as long as its records exist and all its rerun triggers are on. This check reads the
receipts instead, so that figures are never computed from results that do not belong together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.cohort.sheet import Sheet, SlideRow, is_remote
from wsi_pipeline.config import TissueRun
from wsi_pipeline.errors import PipelineError, StoreError
from wsi_pipeline.io.digests import digest_file
from wsi_pipeline.io.fingerprints import Fingerprints
from wsi_pipeline.io.layout import SLIDE_STAGES, TEST_SLIDE_STAGES, Layout
from wsi_pipeline.receipts.base import read_any_version

# Problems and files that an error lists.
_LISTED = 10
_MISSING = "missing or damaged"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the results of a run are computed from.

    `options` has the options of each stage to check, by name, as JSON values with their `step_version`. Training slides
    are checked where it has those of the stage patches.
    """

    sheet: Sheet
    layout: Layout
    options: Mapping[str, Mapping[str, Any]]
    fingerprints: Fingerprints


@dataclass(frozen=True, slots=True)
class _Problem:
    slide: str
    stage: str
    receipt: Path
    reason: str

    @property
    def rule(self) -> str:
        """The rule that computes the receipt again."""
        return "scores" if self.stage == "detect" else self.stage


def check_results(expected: Expected, *, before_jobs: bool = False) -> None:
    """Raise `StoreError`, with slides, reasons and the command that remedies it, where results are outdated.

    Missing results are an error too, except `before_jobs`, which compute them.
    """
    problems = [one for one in _problems(expected) if not (before_jobs and one.reason == _MISSING)]
    if not problems:
        return
    reasons = [f"slide {one.slide}: {one.receipt} ({one.reason})" for one in problems]
    more = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
    files = list(dict.fromkeys(str(one.receipt) for one in problems))
    if before_jobs:
        if len(files) > _LISTED:
            files = list(dict.fromkeys(str(one.receipt).replace(one.slide, "*") for one in problems))
        remedy = f"Delete these, so that they are computed again: rm {' '.join(files)}"
    else:
        if len(files) > _LISTED:
            files = list(dict.fromkeys(one.rule for one in problems))
        remedy = f"Compute them again, with the arguments of this run: snakemake --forcerun {' '.join(files)}"
    raise StoreError(
        f"{len(reasons)} results do not belong to this config and sheet: {'; '.join(reasons[:_LISTED])}{more}",
        remedy=remedy,
    )


def outdated_slides(expected: Expected) -> set[str]:
    """The slides with outdated or missing results."""
    return {one.slide for one in _problems(expected)}


def _problems(expected: Expected) -> Iterator[_Problem]:
    sheet, layout = expected.sheet, expected.layout
    model = _content(layout.model_json, "train")
    trained_on = {slide: sha256 for stage, slide, sha256 in (model or {}).get("patches_sha256") or ()}
    training = sheet.of_split("train", "validation") if "patches" in expected.options else []
    for slide in training:
        patches = layout.of(slide).slide_file("patches.json")
        for stage, path in (*((one, layout.of(slide).receipt(one)) for one in SLIDE_STAGES), ("patches", patches)):
            yield from _stage_problems(expected, sheet[slide], stage, path)
        drawn = _content(patches, "patches")
        if model and drawn and trained_on.get(slide) != drawn["store_sha256"]:
            yield _Problem(slide, "train", layout.model_json, "the model was trained on other patches of this slide")
    for slide in sheet.of_split("test"):
        for stage in TEST_SLIDE_STAGES:
            path = layout.of(slide).receipt(stage)
            yield from _stage_problems(expected, sheet[slide], stage, path)
            receipt = _content(path, stage) if stage not in SLIDE_STAGES else None
            if model and receipt and receipt["model_sha256"] != model["weights_sha256"]:
                yield _Problem(slide, stage, path, "predicted by another model")


def _stage_problems(expected: Expected, row: SlideRow, stage: str, path: Path) -> Iterator[_Problem]:
    receipt = _content(path, stage)
    reasons = [_MISSING] if receipt is None else _reasons(expected, row, stage, receipt)
    yield from (_Problem(row.slide, stage, path, reason) for reason in reasons)


def _content(path: Path, stage: str) -> dict[str, Any] | None:
    """The content of a receipt, None for a missing or damaged one."""
    try:
        return read_any_version(path, stage)
    except PipelineError:
        return None


def _reasons(expected: Expected, row: SlideRow, stage: str, receipt: Mapping[str, Any]) -> Iterator[str]:
    if stage in expected.options:
        options = dict(expected.options[stage])
        version = options.pop("step_version")
        if stage == "tissue":
            options = row.tissue_options(TissueRun(**options)).model_dump(mode="json")
        found = {"step_version": receipt["step_version"], **receipt["options"]}
        for name, value in {"step_version": version, **options}.items():
            if found.get(name) != value:
                yield f"{name} was {found.get(name)}, is {value}"
    if stage == "convert" and not is_remote(row.path):
        current = expected.fingerprints[row.path]
        if receipt["source_fingerprint"] != current and Path(row.path).is_file():
            yield f"made from another file than {row.path}"
    if stage == "truth":
        for name, value in (("label", row.label), ("exhaustive", row.exhaustive)):
            if receipt[name] != value:
                yield f"{name} was {receipt[name]}, is {value}"
        yield from _annotation_reasons(row.annotation, receipt["annotation_sha256"])


def _annotation_reasons(annotation: str | None, drawn_from: str | None) -> Iterator[str]:
    if annotation is not None and (is_remote(annotation) or not Path(annotation).is_file()):
        return
    if (annotation and digest_file(Path(annotation))) != drawn_from:
        yield f"drawn from another annotation than {annotation}"
