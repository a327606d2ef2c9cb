"""What each stage is given: just the options that can change what it writes."""

from __future__ import annotations

from wsi_pipeline.config.base import Section
from wsi_pipeline.config.evaluation import (
    CalibrationOptions,
    IntervalOptions,
    LesionLevelOptions,
    OperatingPointOptions,
    PatchLevelOptions,
    ReportOptions,
    SlideLevelOptions,
)
from wsi_pipeline.config.slides import PatchesOptions, PyramidRun, TissueOptions, TruthOptions
from wsi_pipeline.config.training import HeatmapRun, TrainingOptions


class PatchDraw(PatchesOptions):
    """Options of the stage patches."""

    seed: int = 1


class HardDraw(PatchDraw):
    """Options of the stage negatives."""

    per_slide: int = 500
    min_score: float = 0.5


class TrainingRun(TrainingOptions):
    """Options of the stage train."""

    seed: int = 1


class CalibrateOptions(Section):
    """Options of the stage calibrate."""

    operating_point: OperatingPointOptions = OperatingPointOptions()
    calibration: CalibrationOptions = CalibrationOptions()


class EvaluateOptions(Section):
    """Options of the stage evaluate."""

    slide_level: SlideLevelOptions = SlideLevelOptions()
    interval: IntervalOptions = IntervalOptions()
    seed: int = 1
    cohort_name: str = "cohort"
    test_set: str = "all"
    synthetic: bool = False


class ReportRun(ReportOptions):
    """Options of the stage report."""

    synthetic: bool = False


STAGE_OPTIONS: dict[str, type[Section]] = {
    "convert": PyramidRun,
    "tissue": TissueOptions,
    "truth": TruthOptions,
    "patches": PatchDraw,
    "train": TrainingRun,
    "negatives": HardDraw,
    "predict": HeatmapRun,
    "heatmap": HeatmapRun,
    "scores": PatchLevelOptions,
    "detect": LesionLevelOptions,
    "calibrate": CalibrateOptions,
    "confusion": PatchLevelOptions,
    "evaluate": EvaluateOptions,
    "report": ReportRun,
}
