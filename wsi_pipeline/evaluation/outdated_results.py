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
from wsi_pipeline.config import STAGES, TissueRun
from wsi_pipeline.errors import ConfigError, PipelineError, StoreError
from wsi_pipeline.io.digests import digest_file, digest_json
from wsi_pipeline.io.fingerprints import Fingerprints
from wsi_pipeline.io.layout import SLIDE_STAGES, Layout
from wsi_pipeline.receipts.base import read_any_version

# Problems and files that an error lists.
_LISTED = 10
_MISSING = "missing or damaged"
_GIVEN = ("options", "predicted_splits", "weights_fingerprint")


@dataclass(frozen=True, slots=True)
class Expected:
    """What the results of a run are computed from.

    `options` has the options of each stage to check, by name, as JSON values with their `step_version`. The slides that
    the model is trained on are checked where it has those of the stage patches; slides of `predicted_splits` are those
    that the model predicts. `weights_fingerprint` is that of the weights that the config gives.
    """

    sheet: Sheet
    layout: Layout
    options: Mapping[str, Mapping[str, Any]]
    predicted_splits: Collection[str]
    fingerprints: Fingerprints
    weights_fingerprint: str | None = None

    @classmethod
    def parse(cls, sheet: Sheet, layout: Layout, text: str) -> Expected:
        """From the fields `options`, `predicted_splits` and `weights_fingerprint` as JSON. Raises `ConfigError`."""
        try:
            given = json.loads(text)
            options, splits, weights = (given[name] for name in _GIVEN)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--expected: not the options and splits of a run ({error!r})") from error
        return cls(sheet, layout, options, splits, Fingerprints.of_results(layout.results), weights)

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
    """An outdated result; `slide` is None for one of the whole cohort."""

    slide: str | None
    stage: str
    receipt: Path
    reason: str

    def __str__(self) -> str:
        slide = "" if self.slide is None else f"slide {self.slide}: "
        return f"{slide}{self.receipt} ({self.reason})"

    @property
    def rule(self) -> str:
        """The rule that computes the receipt again."""
        return "scores" if self.stage == "detect" else self.stage


def check_results(expected: Expected, *, before_jobs: bool = False) -> None:
    """Raise `StoreError`, with slides, reasons and the command that remedies it, where results are outdated.

    Missing results are an error too, except `before_jobs`, which compute them.
    """
    leaked = _leaked(expected)
    if leaked:
        raise StoreError(
            f"slide {', '.join(leaked[:_LISTED])}: in the split test, but the model {expected.layout.model_json} was "
            "trained on it",
            remedy="Move it back to its split, put it in cohort.exclude, or delete the model to train another",
        )
    problems = list(_problems(expected))
    if before_jobs:
        problems = [one for one in problems if one.reason != _MISSING] + list(_figure_problems(expected))
    if not problems:
        return
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    files = list(dict.fromkeys(str(one.receipt) for one in problems))
    if before_jobs:
        if len(files) > _LISTED:
            files = list(dict.fromkeys(str(one.receipt).replace(one.slide or "*", "*") for one in problems))
        remedy = f"Delete these, so that they are computed again: rm {' '.join(files)}"
    else:
        if len(files) > _LISTED:
            files = list(dict.fromkeys(one.rule for one in problems))
        remedy = f"Compute them again, with the arguments of this run: snakemake --forcerun {' '.join(files)}"
    raise StoreError(
        f"{len(problems)} results do not belong to this config and sheet: "
        f"{'; '.join(map(str, problems[:_LISTED]))}{more}",
        remedy=remedy,
    )


def outdated_slides(expected: Expected) -> set[str]:
    """The slides with outdated or missing results: all of them where the model or the operating point is outdated."""
    slides = {one.slide for one in _problems(expected)}
    everything = None in slides or _leaked(expected)
    return {*expected.sheet} if everything else {slide for slide in slides if slide is not None}


def _trained_on(model: Mapping[str, Any] | None) -> dict[str, str]:
    """Digests of the patches that a model was trained on, by slide; without hard negatives of the same slides."""
    return {slide: sha256 for stage, slide, sha256 in (model or {}).get("patches_sha256") or () if stage == "patches"}


def _leaked(expected: Expected) -> list[str]:
    """Test slides that the model was trained on."""
    trained_on = _trained_on(_content(expected.layout.model_json, "train"))
    return [slide for slide in expected.sheet.of_split("test") if slide in trained_on]


def _figure_problems(expected: Expected) -> Iterator[_Problem]:
    """The figures, where they are of other options or another sheet."""
    path = expected.layout.evaluation / "metrics.json"
    try:
        computed_from = json.loads(path.read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, KeyError, TypeError):
        computed_from = {}
    options = dict(expected.options["evaluate"])
    current = {"step_version": options.pop("step_version"), "sheet_sha256": expected.sheet.digest()}
    current |= {"options_sha256": digest_json(options)}
    if path.is_file() and any(computed_from.get(name) != value for name, value in current.items()):
        yield _Problem(None, "evaluate", path, "computed for other options or another sheet")


def _cohort_problems(expected: Expected, model: Mapping[str, Any] | None) -> Iterator[_Problem]:
    """The model and the operating point."""
    layout = expected.layout
    for stage, path in (("train", layout.model_json), ("calibrate", layout.calibration)):
        if stage in expected.options:
            receipt = _content(path, stage)
            reasons = [_MISSING] if receipt is None else _option_reasons(expected.options[stage], receipt)
            yield from (_Problem(None, stage, path, reason) for reason in reasons)
    # Models of earlier versions lack the fingerprint.
    source = (model or {}).get("source_fingerprint")
    if source and expected.weights_fingerprint and source != expected.weights_fingerprint:
        yield _Problem(None, "train", layout.model_json, "made from other weights than those in the config")
    if model is not None and "train" in expected.options:
        for slide in _trained_on(model).keys() - {*expected.sheet.of_split("train", "validation")}:
            yield _Problem(None, "train", layout.model_json, f"trained with {slide}, which is no training slide")


def _problems(expected: Expected) -> Iterator[_Problem]:
    sheet, layout = expected.sheet, expected.layout
    model = _content(layout.model_json, "train")
    trained_on = _trained_on(model)
    yield from _cohort_problems(expected, model)
    for row in sheet.values():
        for stage in expected.stages(row.split):
            of_slide = layout.of(row.slide)
            path = of_slide.slide_file("patches.json") if stage == "patches" else of_slide.receipt(stage)
            receipt = _content(path, stage)
            reasons = [_MISSING] if receipt is None else _reasons(expected, row, stage, receipt)
            yield from (_Problem(row.slide, stage, path, reason) for reason in reasons)
            if model is None or receipt is None or receipt.get("step_version") != STAGES[stage].step_version:
                continue
            if receipt.get("model_sha256") not in (None, model.get("weights_sha256")):
                yield _Problem(row.slide, stage, path, "predicted by another model")
            if stage == "patches" and trained_on.get(row.slide) != receipt["store_sha256"]:
                yield _Problem(None, "train", layout.model_json, f"trained on other patches of slide {row.slide}")


def _content(path: Path, stage: str) -> dict[str, Any] | None:
    """The content of a receipt, None for a missing or damaged one."""
    try:
        return read_any_version(path, stage)
    except PipelineError:
        return None


def _reasons(expected: Expected, row: SlideRow, stage: str, receipt: Mapping[str, Any]) -> Iterator[str]:
    if receipt.get("step_version") != STAGES[stage].step_version:
        # Its fields may be others.
        yield f"step_version was {receipt.get('step_version')}, is {STAGES[stage].step_version}"
        return
    if stage in expected.options:
        options = dict(expected.options[stage])
        version = options.pop("step_version")
        if stage == "tissue":
            options = row.tissue_options(TissueRun(**options)).model_dump(mode="json")
        yield from _option_reasons({"step_version": version, **options}, receipt)
    if stage == "convert" and not is_remote(row.path):
        current = expected.fingerprints[row.path]
        if receipt["source_fingerprint"] != current and Path(row.path).is_file():
            yield f"made from another file than {row.path}"
    if stage == "convert":
        given = receipt["mpp"] if receipt["mpp_source"] == "sheet" else None
        if given != row.mpp:
            yield f"mpp was {given}, is {row.mpp}"
    if stage == "truth":
        for name in ("label", "exhaustive", "annotation_origin"):
            if receipt[name] != getattr(row, name):
                yield f"{name} was {receipt[name]}, is {getattr(row, name)}"
        yield from _annotation_reasons(row.annotation, receipt["annotation_sha256"])


def _option_reasons(options: Mapping[str, Any], receipt: Mapping[str, Any]) -> Iterator[str]:
    found = {"step_version": receipt.get("step_version"), **(receipt.get("options") or {})}
    for name, value in options.items():
        if found.get(name) != value:
            yield f"{name} was {found.get(name)}, is {value}"


def _annotation_reasons(annotation: str | None, drawn_from: str | None) -> Iterator[str]:
    if annotation is not None and (is_remote(annotation) or not Path(annotation).is_file()):
        return
    if (annotation and digest_file(Path(annotation))) != drawn_from:
        yield f"drawn from another annotation than {annotation}"
