"""The HTML of the report: templates, embedded data, and the text above the figures."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from wsi_pipeline.evaluation.summary import SYNTHETIC, Figures, unread_text


def render(**content: Any) -> str:
    """The page from the template `report.html`, with its styles and scripts inside."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page: str = environment.from_string(_static("report.html")).render(
        styles=_static("panels.css") + _static("report.css"),
        scripts=_static("panels.js") + _static("report.js"),
        **content,
    )
    return page + "\n"


def _static(name: str) -> str:
    return files("wsi_pipeline.view").joinpath("static", name).read_text(encoding="utf-8")


def embedded_json(content: Any) -> str:
    """Compact JSON for a script element, which no string in it can close."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def warning_lines(metrics: Figures, synthetic: bool) -> list[str]:
    """Sentences for the top of the page: synthetic slides, missing results, damaged chunks."""
    cohort = metrics["cohort"]
    found = [f"{SYNTHETIC}."] if synthetic else []
    if not cohort["complete"]:
        found.append(f"Incomplete: no results of {', '.join(cohort['missing'])}.")
    if cohort["unread_positions"]:
        text = unread_text(cohort["unread_positions"])
        found.append(f"{text[0].upper()}{text[1:]}.")
    return found


def note_lines(metrics: Figures) -> list[str]:
    """Sentences on the cohort, the intervals and the exclusions."""
    cohort, patch = metrics["cohort"], metrics["patch"]
    about = (
        f"Cohort {cohort['name']}: {len(cohort['test_slides'])} test slides. Intervals: {patch['interval_method']}, "
        f"{100 * patch['interval_level']:.0f} %."
    )
    excluded = [f"Excluded by the config: {', '.join(cohort['excluded'])}."] if cohort["excluded"] else []
    return [about, *excluded]
