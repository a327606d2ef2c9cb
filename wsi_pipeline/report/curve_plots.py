"""The interactive curves of the report (Bokeh)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import pandas as pd
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.palettes import Colorblind
from bokeh.plotting import figure
from bokeh.resources import Resources

from wsi_pipeline.plots.figures import BLUE, GREEN, ORANGE

# Bokeh's own type hints are skipped, see pyproject.toml.
Element = Any

_PLOT_PX = 380
_RANDOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Labels(NamedTuple):
    """Title and axes of a plot."""

    title: str
    x: str
    y: str


SLIDE_ROC = Labels("ROC of slides", "false positive rate", "true positive rate")
ROC = Labels("ROC of patches", "false positive rate", "true positive rate")
PRECISION_RECALL = Labels("Precision and recall of patches", "recall", "precision")
FROC = Labels("FROC of lesions", "false positives per slide", "sensitivity")


def bokeh_resources() -> str:
    """Bokeh's scripts and styles as HTML."""
    html: str = Resources(mode="inline", components=["bokeh"]).render()
    return html


def curve_plots(tables: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """ROC, precision-recall and FROC from the CSV text of the tables by name; a script, and an HTML element each."""
    names = ("roc.csv", "pr.csv", "froc.csv", "roc_band.csv")
    roc, pr, froc, band = (pd.read_csv(io.StringIO(tables[name])) for name in names)
    return _embedded(
        _plot([("", roc)], ROC, (BLUE,), band),
        _plot([("", pr)], PRECISION_RECALL, (GREEN,)),
        _plot([("", froc)], FROC, (ORANGE,)),
    )


def compared_plots(models: Sequence[tuple[str, Mapping[str, str]]]) -> tuple[str, tuple[str, ...]]:
    """ROC of slides, ROC of patches and FROC, with a line for each model of name and tables; as `curve_plots`."""

    def lines(table: str) -> list[tuple[str, pd.DataFrame]]:
        return [(name, pd.read_csv(io.StringIO(tables[table]))) for name, tables in models]

    tables = {"slide_roc.csv": SLIDE_ROC, "roc.csv": ROC, "froc.csv": FROC}
    return _embedded(*(_plot(lines(table), labels, Colorblind[8]) for table, labels in tables.items()))


def _embedded(*plots: Element) -> tuple[str, tuple[str, ...]]:
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


def _plot(
    lines: Sequence[tuple[str, pd.DataFrame]],
    labels: Labels,
    colors: Sequence[str],
    band: pd.DataFrame | None = None,
) -> Element:
    """Lines of name and points; the names are the legend, unless empty."""
    known = any(len(points) for _, points in lines)
    plot = figure(
        width=_PLOT_PX,
        height=_PLOT_PX,
        title=labels.title if known else f"{labels.title}: not computed",
        x_axis_label=labels.x,
        y_axis_label=labels.y,
        toolbar_location="above",
    )
    plot.y_range = Range1d(start=-0.02, end=1.02)
    if not known:
        return plot
    if band is not None:
        limits = ColumnDataSource(band.set_axis(["x", "low", "high"], axis=1).to_dict("list"))
        plot.varea("x", "low", "high", source=limits, fill_color=colors[0], fill_alpha=0.2)
    for (name, points), color in zip(lines, cycle(colors), strict=False):
        source = ColumnDataSource(points.set_axis(["threshold", "log_odds", "x", "y"], axis=1).to_dict("list"))
        legend = {"legend_label": name} if name else {}
        line = plot.line("x", "y", source=source, color=color, line_width=2, **legend)
        threshold = ("threshold", "@threshold{0.0000} (log odds @log_odds{0.00})")
        tips = [("model", name) if name else threshold, (labels.x, "@x{0.0000}"), (labels.y, "@y{0.0000}")]
        plot.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
        if name:
            plot.legend.location = "bottom_right"
    return plot
