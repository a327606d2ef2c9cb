"""The page that compares models: their figures, the differences of all pairs, and their curves over each other."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_pipeline.evaluation.comparison import EvaluatedModel, comparison_note, comparison_rows
from wsi_pipeline.evaluation.summary import SYNTHETIC, Figures
from wsi_pipeline.evaluation.tables import curve_table, read_table
from wsi_pipeline.metrics.curves import Histogram, roc_curve
from wsi_pipeline.report.curve_plots import bokeh_resources, compared_plots
from wsi_pipeline.report.page import render


def comparison_page(models: Sequence[EvaluatedModel], figures: Figures) -> str:
    """The page on `figures` of these models, self-contained HTML. Raises `StoreError` for a table that was changed."""
    script, plots = compared_plots([(model.name, _curve_tables(model)) for model in models])
    cohort = figures["cohort"]
    return render(
        title=f"Comparison of {' and '.join(dict.fromkeys(model.name for model in models))} on {cohort['name']}",
        warnings=[f"{SYNTHETIC}."] if cohort["synthetic"] else [],
        notes=[comparison_note(figures)],
        comparison=comparison_rows(figures),
        bokeh=bokeh_resources(),
        bokeh_plots=script,
        plots=plots,
    )


def _curve_tables(model: EvaluatedModel) -> dict[str, str]:
    """The curves of patches and lesions as the evaluation wrote them, and the ROC curve of slides."""
    slides = Histogram.of(model.slide_scores, model.is_tumor)
    curve = roc_curve(slides) if slides.n_normal and slides.n_tumor else None
    of_evaluation = {name: read_table(model.layout.evaluation, name, model.metrics) for name in ("roc.csv", "froc.csv")}
    return {**of_evaluation, "slide_roc.csv": curve_table("false_positive_rate", "true_positive_rate", curve)}
