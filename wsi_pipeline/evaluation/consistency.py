"""Checks that results of different slides and stages belong together."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_pipeline.config import LesionLevelOptions, PatchLevelOptions
from wsi_pipeline.errors import StoreError
from wsi_pipeline.receipts.evaluation import CalibrateReceipt


def common_model(slides: Sequence[tuple[str, str]]) -> str | None:
    """The digest of the model common to all pairs (slide, model); None for no pairs. Raises `StoreError` for two."""
    models = {model: slide for slide, model in slides}
    if len(models) > 1:
        (a, first), (b, second), *_ = models.items()
        raise StoreError(
            f"{first} was predicted by the model {a[:12]}, {second} by {b[:12]}",
            remedy="Run the stage heatmap again for all slides",
        )
    return next(iter(models), None)


def check_chosen_for(chosen: CalibrateReceipt, slide: str, model: str) -> None:
    """Raises `StoreError` where the operating point was chosen for another model than that of the slide."""
    if chosen.model_sha256 is not None and chosen.model_sha256 != model:
        raise StoreError(
            f"slide {slide} was predicted by the model {model[:12]}, but the operating point was chosen for "
            f"{chosen.model_sha256[:12]}",
            remedy="Run the stage calibrate again",
        )


def common_label_rule(options: Sequence[PatchLevelOptions]) -> PatchLevelOptions | None:
    """The rule for the truth of a patch that all `options` share; None for none. Raises `StoreError` for two."""
    rules = {one.model_dump_json(): one for one in options}
    if len(rules) > 1:
        raise StoreError(
            "the slides were not all judged by the same label rule",
            remedy="Run the stages scores and confusion again for all slides",
        )
    return next(iter(rules.values()), None)


def common_protocol(options: Sequence[LesionLevelOptions]) -> str | None:
    """The protocol of lesions that all `options` share; None for none. Raises `StoreError` for two."""
    protocols = {one.protocol for one in options}
    if len(protocols) > 1:
        raise StoreError(
            f"the lesions of the slides were measured by the protocols {' and '.join(sorted(protocols))}",
            remedy="Run the stage detect again for all slides",
        )
    return next(iter(protocols), None)
