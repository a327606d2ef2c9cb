"""Config sections of the evaluation and the report."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wsi_pipeline.config.base import (
    Count,
    Fraction,
    LabelRule,
    LesionProtocol,
    NonNegative,
    Positive,
    PositiveFraction,
    Section,
)


class OperatingPointOptions(Section):
    """The threshold on tumour probability (stage calibrate)."""

    rule: Literal["fixed", "youden", "max_f1", "sensitivity", "false_positives_per_slide"] = Field(
        "fixed",
        description="Rule for the threshold. fixed: the given one. All other rules choose it on the validation "
        "slides, which are then predicted too. youden: highest sensitivity + specificity over their patches. max_f1: "
        "highest F1 over their patches. sensitivity: highest threshold with at least the given sensitivity over their "
        "patches. false_positives_per_slide: lowest threshold with at most the given number of false positive "
        "detections per slide.",
    )
    threshold: Fraction = Field(
        0.8, description="For fixed: patches with at least this probability are classified as tumour."
    )
    sensitivity: PositiveFraction = Field(
        0.95, description="For sensitivity: minimum share of tumour patches classified as tumour."
    )
    false_positives_per_slide: NonNegative = Field(
        1.0, description="For false_positives_per_slide: maximum mean number of detections outside lesions."
    )


class CalibrationOptions(Section):
    """Calibration of the probabilities (stage calibrate)."""

    temperature: bool = Field(
        False,
        description="Fit a temperature (Guo et al. 2017) on the validation slides, which are then predicted too, and "
        "report the calibration on the test slides without and with it. Heatmaps keep the network's probabilities.",
    )


class PatchLevelOptions(Section):
    """Ground truth of a patch in the evaluation (stages scores and confusion)."""

    label_rule: LabelRule = Field(
        "centre_nearest",
        description="Rule for the truth of a patch. centre_nearest: the truth pixel nearest to the centre. "
        "centre_region: tumour if the central region contains any. area_fraction: tumour if at least min_tumor of the "
        "area is.",
    )
    region_um: Positive = Field(32.0, description="For centre_region: edge length of the central region, um.")
    min_tumor: PositiveFraction = Field(0.5, description="For area_fraction: minimum share of tumour.")


class SlideLevelOptions(Section):
    """The score of a slide (stage evaluate)."""

    score: Literal["maximum", "top_share", "forest"] = Field(
        "maximum",
        description="maximum: highest probability of the heatmap. top_share: mean of the highest probabilities. "
        "forest: random forest on features of the heatmap, fitted on the training and validation slides, which are "
        "then predicted too.",
    )
    top_share: PositiveFraction = Field(0.01, description="For top_share: share of the positions that are averaged.")
    trees: Count = Field(500, description="For forest: number of trees.")


class LesionLevelOptions(Section):
    """Detections and the lesions they are matched with (stage detect)."""

    method: Literal["suppression", "components"] = Field(
        "suppression",
        description="suppression: detections are the maxima left by non-maximum suppression. components: one "
        "detection per connected area at or above min_score, at its maximum.",
    )
    radius_um: Positive = Field(192.0, description="Radius of non-maximum suppression, um.")
    min_score: Fraction = Field(0.5, description="Minimum probability of a detection.")
    protocol: LesionProtocol = Field(
        "slide_scale",
        description="Scale at which lesions are measured. slide_scale: that of each slide. camelyon16: as in the "
        "challenge, 0.243 um per pixel of level 0 for all slides, in masks of level 5.",
    )
    merge_um: NonNegative = Field(75.0, description="Foci up to this distance apart are one lesion, um.")
    itc_um: NonNegative = Field(
        275.0,
        description="Lesions with a shorter major axis are isolated tumour cells, which are not scored, um.",
    )

    @model_validator(mode="after")
    def _lengths_of_the_protocol(self) -> Self:
        if self.protocol == "camelyon16" and (self.merge_um, self.itc_um) != (75.0, 275.0):
            raise ValueError("the protocol camelyon16 has merge_um 75 and itc_um 275")
        return self


class IntervalOptions(Section):
    """Confidence intervals, with slides as the sampling units."""

    level: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Confidence level.")


class EvaluationOptions(Section):
    """Evaluation of the predictions (stages scores, detect, calibrate, confusion, evaluate)."""

    operating_point: OperatingPointOptions = Field(
        default_factory=OperatingPointOptions, description="Threshold on the tumour probability of a patch."
    )
    calibration: CalibrationOptions = Field(
        default_factory=CalibrationOptions, description="Calibration of the probabilities."
    )
    patch_level: PatchLevelOptions = Field(default_factory=PatchLevelOptions, description="Ground truth of a patch.")
    slide_level: SlideLevelOptions = Field(default_factory=SlideLevelOptions, description="Score of a slide.")
    lesion_level: LesionLevelOptions = Field(default_factory=LesionLevelOptions, description="Detections and lesions.")
    interval: IntervalOptions = Field(default_factory=IntervalOptions, description="Confidence intervals.")

    @property
    def uses_validation(self) -> bool:
        """Whether the stage calibrate needs predictions of the validation slides."""
        return self.operating_point.rule != "fixed" or self.calibration.temperature

    @property
    def extra_predicted_splits(self) -> tuple[str, ...]:
        """Splits predicted besides the test slides, because a threshold, temperature or forest is fitted on them."""
        forest = self.slide_level.score == "forest"
        return ("train", "validation") if forest else ("validation",) if self.uses_validation else ()


class ReportOptions(Section):
    """The report page."""

    title: str = Field("Tumour classification on whole-slide images", description="Title of the page.")
    thumbnail_px: Annotated[int, Field(ge=128, le=2048)] = Field(
        1024, description="Longer edge of a slide's thumbnail, pixels; reduced where the page would exceed max_mb."
    )
    max_mb: Positive = Field(
        20.0,
        description="Target size of the page, MB: heatmaps and thumbnails are reduced, then slides left out, to fit.",
    )
