"""The command compare: differences of the figures of models on one cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi_pipeline.evaluation.comparison import EvaluatedModel
    from wsi_pipeline.evaluation.summary import Figures


def command(
    results: Annotated[Path, typer.Argument(help="Results folder, with an evaluation of each model.")],
    others: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="More models, after the first of --models.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="First model (training.model); by default all evaluated models."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for compare.json, compare.csv and compare.html.")] = None,
) -> None:
    """Compare models that were evaluated on the same slides: differences, intervals and p values of all pairs."""
    from wsi_pipeline.errors import ConfigError
    from wsi_pipeline.evaluation.comparison import EvaluatedModel, compare_models, comparison_text
    from wsi_pipeline.io.layout import Layout

    names = [*(models or []), *(others or [])] or Layout(results, None).evaluated_models()
    if len(names) < 2:
        raise ConfigError(
            f"{results}: {len(names)} models to compare{''.join(f' ({name})' for name in names)}",
            remedy="Name at least two, or evaluate another in the same results folder under another training.model",
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{results}: the model {repeated[0]} is named twice", remedy="Name each model once")
    evaluated = [EvaluatedModel.read(Layout(results, name)) for name in names]
    figures = compare_models(evaluated)
    print(comparison_text(figures))
    if output is not None:
        _write(evaluated, figures, output)


def _write(models: list[EvaluatedModel], figures: Figures, folder: Path) -> None:
    """Write table, page and, last, the figures with the digest of the table."""
    from wsi_pipeline.evaluation.tables import comparison_table, write_tables
    from wsi_pipeline.io.atomic import write_text
    from wsi_pipeline.io.digests import canonical_json
    from wsi_pipeline.report.comparison_page import comparison_page

    values = {model.name: model.figures for model in models}
    tables = {"compare.csv": comparison_table(figures["differences"], values)}
    write_text(folder / "compare.html", comparison_page(models, figures))
    figures["provenance"]["tables_sha256"] = write_tables(folder, tables)
    write_text(folder / "compare.json", canonical_json(figures))
