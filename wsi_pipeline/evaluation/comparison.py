"""Comparison of models on one cohort: paired differences of their figures, from finished evaluations."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np

from wsi_pipeline import __version__
from wsi_pipeline.cohort.sheet import SlideRow
from wsi_pipeline.config import EvaluateRun, SlideLevelOptions
from wsi_pipeline.errors import IncompleteError, StoreError
from wsi_pipeline.evaluation.cohort import inputs_digest
from wsi_pipeline.evaluation.slide_results import (
    CohortResults,
    ResultFolders,
    SlideResult,
    hits_of_slides,
    load_results,
)
from wsi_pipeline.evaluation.summary import SYNTHETIC, Figures, format_difference, format_figure, read_metrics
from wsi_pipeline.evaluation.tables import read_table
from wsi_pipeline.io.digests import digest_file
from wsi_pipeline.io.layout import Layout
from wsi_pipeline.metrics.delong import Labels, Scores, auc_contributions
from wsi_pipeline.metrics.intervals import holm, is_constant, leave_out_weights, no_interval_reason, paired_difference
from wsi_pipeline.metrics.lesions import PooledHits
from wsi_pipeline.metrics.pooled import Floats, histogram_aucs

SCHEMA_VERSION = 1
FIGURES = {
    "slide_auc": "Slide AUC",
    "patch_auc": "Patch AUC",
    "froc": "FROC score",
    "froc_all_thresholds": "FROC score over all thresholds",
}
_NAMED_SLIDES = 10
_EVALUATE_AGAIN = "Run the stage evaluate again for this model"
_PROVENANCE = ("model_sha256", "options_sha256", "sheet_sha256", "inputs_sha256")


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model with its finished evaluation, which was checked against the receipts of its slides.

    `figures` has the value of each of `FIGURES` with its interval and reasons, as in `metrics.json`. `changes` (parts,)
    are the changes of a figure without each slide (of the slide AUC: DeLong's contributions of the slides); None for a
    figure without an interval. `conditions` are the facts of each slide that models must share.
    """

    layout: Layout
    metrics: Figures
    metrics_sha256: str
    figures: dict[str, Figures]
    changes: dict[str, Floats | None]
    conditions: dict[str, dict[str, Any]]
    slide_scores: Scores
    is_tumor: Labels

    @classmethod
    def read(cls, layout: Layout) -> Self:
        """The evaluation of the model of `layout`.

        Raises `IncompleteError` where slides are missing, `StoreError` for one that was not computed from the results.
        """
        path = layout.evaluation / "metrics.json"
        metrics = _checked_metrics(layout)
        rows = _rows(read_table(layout.evaluation, "slides.csv", metrics))
        folders = ResultFolders(*(layout.folder(stage) for stage in ("scores", "confusion", "detect")))
        slides = [SlideRow(row["slide"], "", "test", label=row["label"] or None) for row in rows]
        results = load_results(slides, folders, layout.calibration, SlideLevelOptions())
        if metrics["provenance"]["inputs_sha256"] != inputs_digest(results):
            raise StoreError(f"{path}: computed from other results of the slides", remedy=_EVALUATE_AGAIN)
        known = [row for row in rows if row["label"] and row["score"]]
        scores = np.array([float(row["score"]) for row in known], np.float64)
        is_tumor = np.array([row["label"] == "tumor" for row in known], bool)
        figures = _figures(metrics)
        return cls(
            layout=layout,
            metrics=metrics,
            metrics_sha256=digest_file(path),
            figures=figures,
            changes=_changes(figures, results, auc_contributions(scores, is_tumor)),
            conditions={slide.row.slide: _conditions(slide) for slide in results.slides},
            slide_scores=scores,
            is_tumor=is_tumor,
        )

    @property
    def name(self) -> str:
        return self.layout.model or ""

    def facts(self) -> Figures:
        """The model for `compare.json`."""
        return {
            "name": self.name,
            "slide_score": self.metrics["slide"]["score"],
            "figures": self.figures,
            "metrics_sha256": self.metrics_sha256,
            **{key: self.metrics["provenance"][key] for key in _PROVENANCE},
        }


def _checked_metrics(layout: Layout) -> Figures:
    path = layout.evaluation / "metrics.json"
    if not path.is_file():
        raise StoreError(
            f"{path}: no evaluation of the model {layout.model}",
            remedy=f"Evaluated models: {', '.join(layout.evaluated_models()) or 'none'}",
        )
    metrics = read_metrics(path)
    version = metrics.get("provenance", {}).get("step_version")
    if version != EvaluateRun.step_version:
        raise StoreError(
            f"{path}: written by step_version {version} of the stage evaluate; this is {EvaluateRun.step_version}",
            remedy=_EVALUATE_AGAIN,
        )
    missing = metrics["cohort"]["missing"]
    if missing:
        raise IncompleteError(
            f"{path}: slides without results: {_named(missing)}", remedy="Complete the evaluation of this model first"
        )
    return metrics


def _rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def _figures(metrics: Figures) -> dict[str, Figures]:
    lesion = metrics["lesion"]
    sources = (metrics["slide"], "auc"), (metrics["patch"], "auc"), (lesion, "froc"), (lesion["all_thresholds"], "froc")
    return {
        name: {
            "value": source[key],
            "value_interval": source[f"{key}_interval"],
            "value_interval_reason": source[f"{key}_interval_reason"],
            "reason": source["reason"],
        }
        for name, (source, key) in zip(FIGURES, sources, strict=True)
    }


def _changes(
    figures: dict[str, Figures], results: CohortResults, contributions: Floats | None
) -> dict[str, Floats | None]:
    """The changes of each figure that has an interval."""
    value = {name: one["value"] for name, one in figures.items() if one["value_interval"] is not None}
    found = dict[str, Floats | None].fromkeys(FIGURES)
    if "slide_auc" in value:
        found["slide_auc"] = contributions
    if "patch_auc" in value:
        weights = results.pooled.leave_out()
        found["patch_auc"] = results.pooled.weighted(histogram_aucs, value["patch_auc"], weights) - value["patch_auc"]
    if "froc" in value:
        hits = hits_of_slides(results.slides)
        all_thresholds, camelyon16 = PooledHits(hits).weighted(leave_out_weights(len(hits)))[:, 0]
        found["froc"] = camelyon16 - value["froc"]
        found["froc_all_thresholds"] = all_thresholds - value["froc_all_thresholds"]
    return found


def _conditions(slide: SlideResult) -> dict[str, Any]:
    """What two models must share of a slide, by the words that name it."""
    lesions = slide.detections.options
    return {
        "label": slide.row.label,
        "availability of predictions": slide.scores.features is not None,
        "truth image": slide.detections.truth_sha256,
        "reason to leave out its lesions": slide.detections.reason,
        "rule for the truth of patches": slide.scores.options,
        "patch positions": slide.scores.labels_sha256,
        "protocol of lesions": (lesions.protocol, lesions.merge_um, lesions.itc_um),
    }


def _named(slides: Sequence[str]) -> str:
    more = f" and {len(slides) - _NAMED_SLIDES} more" if len(slides) > _NAMED_SLIDES else ""
    return f"{', '.join(slides[:_NAMED_SLIDES])}{more}"


def check_comparable(models: Sequence[EvaluatedModel]) -> None:
    """Raise `StoreError` where models were not evaluated on the same slides with the same truth, naming the slides."""
    first = models[0]
    remedy = "Evaluate the models with the same sheet and config, except for the model"
    for other in models[1:]:
        for one, another in ((first, other), (other, first)):
            alone = sorted(one.conditions.keys() - another.conditions.keys())
            if alone:
                raise StoreError(
                    f"slide {_named(alone)}: evaluated for the model {one.name} and not for {another.name}",
                    remedy=remedy,
                )
        for what in next(iter(first.conditions.values()), {}):
            slides = [s for s, facts in first.conditions.items() if facts[what] != other.conditions[s][what]]
            if slides:
                raise StoreError(
                    f"slide {_named(slides)}: the models {first.name} and {other.name} were evaluated with another "
                    f"{what}",
                    remedy=remedy,
                )
        level, other_level = (one.metrics["patch"]["interval_level"] for one in (first, other))
        if level != other_level:
            raise StoreError(
                f"the intervals of the models {first.name} and {other.name} have the levels {level:g} and "
                f"{other_level:g}",
                remedy=remedy,
            )


def compare_models(models: Sequence[EvaluatedModel]) -> Figures:
    """The content of `compare.json`: each model with its figures, and the differences of all pairs of models."""
    check_comparable(models)
    metrics = models[0].metrics
    level = metrics["patch"]["interval_level"]
    return {
        "schema_version": SCHEMA_VERSION,
        "models": [model.facts() for model in models],
        "differences": {name: _differences(models, name, level) for name in FIGURES},
        "cohort": {key: metrics["cohort"][key] for key in ("name", "synthetic", "test_slides")},
        "n": {
            "slide_auc": {key: metrics["slide"][key] for key in ("n_normal", "n_tumor")},
            "patch_auc": {key: metrics["patch"][key] for key in ("n_slides", "n_normal", "n_tumor")},
            "froc": {key: metrics["lesion"][key] for key in ("n_slides", "n_lesions")},
        },
        "interval_level": level,
        "interval_method": "Student's t by the slides that the variance rests on; slide AUC: paired DeLong, other "
        "figures: jackknife of the difference over slides",
        "p_adjustment": "Holm, over the pairs of models of a figure that have a p value",
        "provenance": {"wsi_pipeline": __version__},
    }


def _differences(models: Sequence[EvaluatedModel], name: str, level: float) -> list[Figures]:
    """The differences of a figure, first minus second, of all pairs of models."""
    found = [_difference(first, second, name, level) for first, second in combinations(models, 2)]
    tested = [one for one in found if one["p_value"] is not None]
    for one, adjusted in zip(tested, holm([one["p_value"] for one in tested]), strict=True):
        one["p_adjusted"] = adjusted
    return found


def _difference(first: EvaluatedModel, second: EvaluatedModel, name: str, level: float) -> Figures:
    of_first, of_second = first.figures[name], second.figures[name]
    difference: Figures = {
        "models": [first.name, second.name],
        "difference": None,
        "difference_interval": None,
        "difference_interval_reason": of_first["value_interval_reason"],
        "reason": of_first["reason"],
        "standard_error": None,
        "p_value": None,
        "p_adjusted": None,
    }
    if of_first["value"] is None or of_second["value"] is None:
        return difference
    value = of_first["value"] - of_second["value"]
    changes, others = first.changes[name], second.changes[name]
    if changes is None or others is None:
        return {**difference, "difference": value}
    extreme = [one for one, own in ((first, changes), (second, others)) if is_constant(own)]
    if name != "slide_auc" and len(extreme) == 1:
        # Its variance would be taken for 0, and the interval would be that of the other model's figure alone.
        figure = f"{extreme[0].figures[name]['value']:g}"
        reason = f"{extreme[0].name} has {figure} whichever slide is left out: its variance is not known"
        return {**difference, "difference": value, "difference_interval_reason": reason}
    found = paired_difference(value, changes - others, level)
    return {
        **difference,
        "difference": value,
        "difference_interval": found.limits,
        "difference_interval_reason": no_interval_reason(found),
        "standard_error": found.standard_error,
        "p_value": found.p_value,
    }


def comparison_rows(figures: Figures) -> list[tuple[str, str, str, str]]:
    """Figure, model or pair of models, value or difference with its interval, and p values, for a table of text."""
    found = list[tuple[str, str, str, str]]()
    for name, title in FIGURES.items():
        values = [(one["name"], format_figure(one["figures"][name], "value"), "") for one in figures["models"]]
        pairs = [
            (" - ".join(one["models"]), format_difference(one), _p_text(one)) for one in figures["differences"][name]
        ]
        found += [(title if not number else "", *row) for number, row in enumerate([*values, *pairs])]
    return found


def _p_text(difference: Figures) -> str:
    p, adjusted = difference["p_value"], difference["p_adjusted"]
    return "" if p is None else f"p {p:.4g}, by Holm {adjusted:.4g}"


def comparison_text(figures: Figures) -> str:
    """A table for a terminal."""
    rows = comparison_rows(figures)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join((*map(str.ljust, row, widths), row[3])).rstrip() for row in rows]
    synthetic = [SYNTHETIC] if figures["cohort"]["synthetic"] else []
    return "\n".join([comparison_note(figures), *synthetic, *lines])


def comparison_note(figures: Figures) -> str:
    """The cohort and the intervals in one line."""
    cohort = figures["cohort"]
    return (
        f"{len(figures['models'])} models on the {len(cohort['test_slides'])} test slides of {cohort['name']}; "
        f"{100 * figures['interval_level']:.0f} % intervals, p values of the pairs of a figure adjusted by Holm"
    )
