"""Sections on how predictions are judged and shown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wsi_pipeline.config.base import Count, Fraction, LabelRule, NonNegative, Positive, Section


class OperatingPointOptions(Section):
    """Where probability becomes a decision (calibrate)."""

    rule: Literal["fixed", "youden", "max_f1", "sensitivity", "false_positives_per_slide"] = Field(
        "fixed",
        description="How the threshold is chosen: the given one (fixed), or on the validation slides, which are then "
        "predicted too: highest sensitivity + specificity (youden) or F1 (max_f1) of their patches, the highest "
        "threshold with at least the given sensitivity of their patches (sensitivity), or the lowest with at most the "
        "given number of false detections (false_positives_per_slide).",
    )
    threshold: Fraction = Field(0.8, description="For fixed: a patch is called tumour at or above this probability.")
    sensitivity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="For sensitivity: share of the tumour patches that are to be called tumour."
    )
    false_positives_per_slide: NonNegative = Field(
        1.0, description="For false_positives_per_slide: mean number of detections outside lesions."
    )


class CalibrationOptions(Section):
    """Whether scores mean probabilities (calibrate)."""

    temperature: bool = Field(
        False,
        description="Whether a temperature is fitted on the validation slides, which are then predicted too; the "
        "calibration of the test slides is given without and with it. Heatmaps stay as the network made them.",
    )


class PatchLevelOptions(Section):
    """Which patches are tumour when predictions are judged (scores, confusion)."""

    label_rule: LabelRule = Field(
        "centre_nearest",
        description="Truth of a patch: the truth pixel nearest to its centre, any tumour in its central region, "
        "or at least min_tumor of its area.",
    )
    region_um: Positive = Field(32.0, description="Edge of the central region of centre_region, um.")
    min_tumor: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="Least share of tumour for area_fraction.")


class SlideLevelOptions(Section):
    """The score of a slide (evaluate)."""

    score: Literal["maximum", "top_share", "forest"] = Field(
        "maximum",
        description="Highest probability of the heatmap; mean of its highest top_share; or a random forest over "
        "features of the heatmap, fitted on the training and validation slides, which are then predicted too.",
    )
    top_share: Annotated[float, Field(gt=0, le=1)] = Field(0.01, description="For top_share: share of the positions.")
    trees: Count = Field(500, description="For forest: number of trees.")


class LesionLevelOptions(Section):
    """Detections and the lesions that they are matched with (detect)."""

    method: Literal["suppression", "components"] = Field(
        "suppression",
        description="What is one detection: a maximum after non-maximum suppression, or a connected area at or above "
        "min_score, at its maximum.",
    )
    radius_um: Positive = Field(192.0, description="Radius of non-maximum suppression, um.")
    min_score: Fraction = Field(0.5, description="Detections below this probability are not made.")
    merge_um: NonNegative = Field(75.0, description="Foci up to this far apart are one lesion, um.")
    itc_um: NonNegative = Field(
        275.0, description="Lesions whose major axis is shorter are isolated tumour cells and not scored, um."
    )


class IntervalOptions(Section):
    """Confidence intervals: bootstrap over slides."""

    resamples: Annotated[int, Field(ge=100)] = Field(2000, description="Bootstrap resamples.")
    level: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Level of the intervals.")


class EvaluationOptions(Section):
    """How predictions are judged (scores, detect, calibrate, confusion, evaluate)."""

    operating_point: OperatingPointOptions = Field(
        default_factory=OperatingPointOptions, description="Where probability becomes a decision."
    )
    calibration: CalibrationOptions = Field(
        default_factory=CalibrationOptions, description="Whether scores mean probabilities."
    )
    patch_level: PatchLevelOptions = Field(default_factory=PatchLevelOptions, description="Truth of a patch.")
    slide_level: SlideLevelOptions = Field(default_factory=SlideLevelOptions, description="The score of a slide.")
    lesion_level: LesionLevelOptions = Field(default_factory=LesionLevelOptions, description="Detections and lesions.")
    interval: IntervalOptions = Field(default_factory=IntervalOptions, description="Confidence intervals.")

    @property
    def uses_validation(self) -> bool:
        """Whether the stage calibrate looks at the validation slides."""
        return self.operating_point.rule != "fixed" or self.calibration.temperature

    @property
    def extra_predicted_splits(self) -> tuple[str, ...]:
        """Splits that are predicted besides the test slides, for what is chosen or fitted on them."""
        forest = self.slide_level.score == "forest"
        return ("train", "validation") if forest else ("validation",) if self.uses_validation else ()


class ReportOptions(Section):
    """The report page."""

    title: str = Field("Tumour classification on whole-slide images", description="Title of the page.")
    thumbnail_px: Annotated[int, Field(ge=128, le=2048)] = Field(
        1024, description="Longer edge of a slide's picture, pixels; smaller where the page would get too large."
    )
    max_mb: Positive = Field(20.0, description="Size of the page that pictures are made smaller for, MB.")
