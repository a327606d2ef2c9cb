"""The cohort of an evaluation: its slides by split, exclusions and missing results."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_pipeline import __version__
from wsi_pipeline.cohort.sheet import SPLITS, Sheet
from wsi_pipeline.config import EvaluateRun
from wsi_pipeline.evaluation.slide_results import CohortResults
from wsi_pipeline.evaluation.summary import Figures
from wsi_pipeline.io.digests import digest_json


def cohort_figures(sheet: Sheet, results: CohortResults, missing: Sequence[str], options: EvaluateRun) -> Figures:
    """The key `cohort` of `metrics.json`; `missing` are test slides without results."""
    return {
        "name": options.cohort_name,
        "synthetic": options.synthetic,
        "complete": not missing,
        "missing": list(missing),
        "excluded": list(sheet.excluded),
        "test_slides": [s.row.slide for s in results.slides],
        "test_patients": len({s.row.patient or ("slide", s.row.slide) for s in results.slides}),
        "unread_positions": {s.row.slide: n for s in results.slides if (n := s.scores.unread_positions)},
        "slides": {split: len(sheet.of_split(split)) for split in SPLITS},
    }


def left_out_figures(sheet: Sheet, results: CohortResults, figures: Figures, options: EvaluateRun) -> Figures:
    """The keys `left_out` and `slide_set` of the figures of a level.

    Slides without scored positions have no part in figures of patches, those in `not_scored` none in figures of slides
    and lesions.
    """
    counts = {result.row.slide: result.scores.positions for result in results.slides}
    without_positions = [slide for slide, positions in counts.items() if not positions.normal + positions.tumor]
    return sheet.left_out(counts.keys() - figures.get("not_scored", without_positions), options.test_set)


def provenance_figures(sheet: Sheet, results: CohortResults, options: EvaluateRun) -> Figures:
    """The key `provenance` of `metrics.json`."""
    return {
        "wsi_pipeline": __version__,
        "step_version": EvaluateRun.step_version,
        "model_sha256": results.model,
        "options_sha256": digest_json(options.model_dump(mode="json")),
        "sheet_sha256": sheet.digest(),
        "inputs_sha256": inputs_digest(results),
        "seed": options.seed,
    }


def inputs_digest(results: CohortResults) -> str:
    """SHA-256 of all receipts that figures are computed from."""
    receipts = ([s.scores.as_json(), s.confusion.as_json(), s.detections.as_json()] for s in results.slides)
    return digest_json([results.chosen and results.chosen.as_json(), *receipts])


def cohort_rows(sheet: Sheet) -> list[tuple[str, ...]]:
    """A table with a row for each split: slides, slides by label, patients and centres."""
    rows: list[tuple[str, ...]] = [("", "slides", "tumour", "normal", "not labelled", "patients", "centres")]
    for split in SPLITS:
        slides = [sheet[name] for name in sheet.of_split(split)]
        labels = [sum(row.label == label for row in slides) for label in ("tumor", "normal", None)]
        places = [len({value for row in slides if (value := getattr(row, key))}) for key in ("patient", "centre")]
        rows.append((split, *(f"{n:,}" for n in (len(slides), *labels)), *(f"{n:,}" if n else "–" for n in places)))
    return rows
