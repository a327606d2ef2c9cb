"""Results that were computed from another config, sheet or slide than those of the current run.

Snakemake reruns their jobs as long as its records exist and all its rerun triggers are on. This check reads the
receipts instead, so that figures are never computed from results that do not belong together.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.cohort.sheet import Sheet, SlideRow, is_remote
from wsi_pipeline.config import TissueRun
from wsi_pipeline.errors import ConfigError, PipelineError, StoreError
from wsi_pipeline.io.digests import digest_file
from wsi_pipeline.io.fingerprints import Fingerprints
from wsi_pipeline.io.layout import SLIDE_STAGES, Layout
from wsi_pipeline.receipts.base import read_any_version

# Problems and files that an error lists.
_LISTED = 10
_MISSING = "missing or damaged"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the results of a run are computed from.

    `options` has the options of each stage to check, by name, as JSON values with their `step_version`. The slides that
    the model is trained on are checked where it has those of the stage patches; slides of `predicted_splits` are those
    that the model predicts.
    """

    sheet: Sheet
    layout: Layout
    options: Mapping[str, Mapping[str, Any]]
    predicted_splits: Collection[str]
    fingerprints: Fingerprints

    @classmethod
    def parse(cls, sheet: Sheet, layout: Layout, text: str) -> Expected:
        """From the fields `options` and `predicted_splits` as JSON. Raises `ConfigError`."""
        try:
            given = json.loads(text)
            options, splits = given["options"], given["predicted_splits"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--expected: not the options and splits of a run ({error!r})") from error
        return cls(sheet, layout, options, splits, Fingerprints.of_results(layout.results))

    def stages(self, split: str) -> list[str]:
        """The stages that leave a receipt for each slide of a split."""
        trained = "patches" in self.options and split in ("train", "validation")
        predicted = split in self.predicted_splits
        stages = [*SLIDE_STAGES] if trained or predicted else []
        if trained:
            stages.append("patches")
        if predicted:
            stages += ["heatmap", "scores", "detect"]
        return [*stages, "confusion"] if split == "test" else stages


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
    for row in sheet.values():
        for stage in expected.stages(row.split):
            of_slide = layout.of(row.slide)
            path = of_slide.slide_file("patches.json") if stage == "patches" else of_slide.receipt(stage)
            receipt = _content(path, stage)
            reasons = [_MISSING] if receipt is None else _reasons(expected, row, stage, receipt)
            yield from (_Problem(row.slide, stage, path, reason) for reason in reasons)
            if model is None or receipt is None:
                continue
            if receipt.get("model_sha256") not in (None, model["weights_sha256"]):
                yield _Problem(row.slide, stage, path, "predicted by another model")
            if stage == "patches" and trained_on.get(row.slide) != receipt["store_sha256"]:
                reason = "the model was trained on other patches of this slide"
                yield _Problem(row.slide, "train", layout.model_json, reason)


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
    if stage == "convert" and row.mpp is not None and receipt["mpp"] != row.mpp:
        yield f"mpp was {receipt['mpp']}, is {row.mpp}"
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
