"""The interactive curves of the report (Bokeh)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources

from wsi_pipeline.plots.figures import BLUE, GREEN, ORANGE

# Bokeh's own type hints are skipped, see pyproject.toml.
Element = Any

_PLOT_PX = 380
_RANDOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def bokeh_resources() -> str:
    """Bokeh's scripts and styles as HTML."""
    html: str = Resources(mode="inline", components=["bokeh"]).render()
    return html


def curve_plots(tables: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """ROC, precision-recall and FROC from the CSV text of the tables by name; a script, and an HTML element each."""
    names = ("roc.csv", "pr.csv", "froc.csv", "roc_band.csv")
    roc, pr, froc, band = (pd.read_csv(io.StringIO(tables[name])) for name in names)
    plots = (
        _plot(roc, "ROC of patches", "false positive rate", "true positive rate", BLUE, band),
        _plot(pr, "Precision and recall of patches", "recall", "precision", GREEN),
        _plot(froc, "FROC of lesions", "false positives per slide", "sensitivity", ORANGE),
    )
    script, elements = components(plots)
    script, *elements = _numbered("\0".join((script, *elements))).split("\0")
    return script, tuple(elements)


def _numbered(html: str) -> str:
    """Replace Bokeh's random ids by numbers: the same curves give the same HTML.

    Not for the whole page: slides may be named by such ids.
    """
    ids = dict.fromkeys(_RANDOM_ID.findall(html))
    numbers = {name: f"{number:08d}-0000-4000-8000-000000000000" for number, name in enumerate(ids)}
    return _RANDOM_ID.sub(lambda found: numbers[found[0]], html)


def _plot(points: pd.DataFrame, title: str, x: str, y: str, color: str, band: pd.DataFrame | None = None) -> Element:
    known = len(points) > 0
    plot = figure(
        width=_PLOT_PX,
        height=_PLOT_PX,
        title=title if known else f"{title}: not computed",
        x_axis_label=x,
        y_axis_label=y,
        toolbar_location="above",
    )
    plot.y_range = Range1d(start=-0.02, end=1.02)
    if not known:
        return plot
    if band is not None:
        limits = ColumnDataSource(band.set_axis(["x", "low", "high"], axis=1).to_dict("list"))
        plot.varea("x", "low", "high", source=limits, fill_color=color, fill_alpha=0.2)
    source = ColumnDataSource(points.set_axis(["threshold", "log_odds", "x", "y"], axis=1).to_dict("list"))
    line = plot.line("x", "y", source=source, color=color, line_width=2)
    tips = [("threshold", "@threshold{0.0000} (log odds @log_odds{0.00})"), (x, "@x{0.0000}"), (y, "@y{0.0000}")]
    plot.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
    return plot
