"""The config: one model for each section, each field with its default, unit and meaning.

`config/defaults.yaml` and `workflow/schemas/config.schema.json` are generated from these models
(`wsi-pipeline config`). Lengths are micrometres, scales um per pixel; threads, memory and partitions
are not config but belong to rules and profiles. The one exception is `training.cpu_threads`: the number of threads
that share a sum decides its last bits, so a reproducible result has to fix it.

Every room may import this package; it imports `errors` only.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from wsi_pipeline.config.base import CLASSES, NAME_PATTERN, LabelRule, Precision, Section
from wsi_pipeline.config.evaluation import (
    CalibrationOptions,
    EvaluationOptions,
    IntervalOptions,
    LesionLevelOptions,
    OperatingPointOptions,
    PatchLevelOptions,
    ReportOptions,
    SlideLevelOptions,
)
from wsi_pipeline.config.slides import (
    CohortOptions,
    PatchesOptions,
    PyramidOptions,
    PyramidRun,
    TissueOptions,
    TruthOptions,
)
from wsi_pipeline.config.stages import (
    STAGE_OPTIONS,
    CalibrateOptions,
    EvaluateOptions,
    HardDraw,
    PatchDraw,
    ReportRun,
    TrainingRun,
)
from wsi_pipeline.config.training import (
    AugmentationOptions,
    HardNegativesOptions,
    HeatmapOptions,
    HeatmapRun,
    TrainingOptions,
)

__all__ = [
    "CLASSES",
    "NAME_PATTERN",
    "STAGE_OPTIONS",
    "STEP_VERSIONS",
    "AugmentationOptions",
    "CalibrateOptions",
    "CalibrationOptions",
    "CohortOptions",
    "Config",
    "EvaluateOptions",
    "EvaluationOptions",
    "HardDraw",
    "HardNegativesOptions",
    "HeatmapOptions",
    "HeatmapRun",
    "IntervalOptions",
    "LabelRule",
    "LesionLevelOptions",
    "OperatingPointOptions",
    "PatchDraw",
    "PatchLevelOptions",
    "PatchesOptions",
    "Precision",
    "PyramidOptions",
    "PyramidRun",
    "ReportOptions",
    "ReportRun",
    "Section",
    "SlideLevelOptions",
    "TissueOptions",
    "TrainingOptions",
    "TrainingRun",
    "TruthOptions",
]

# Raised by one where a stage's results change: everything that it made is then made again.
STEP_VERSIONS = {
    "convert": 3,
    "tissue": 4,
    "truth": 4,
    "patches": 3,
    "train": 4,
    "negatives": 1,
    "predict": 2,
    "heatmap": 5,
    "scores": 3,
    "detect": 1,
    "calibrate": 1,
    "confusion": 4,
    "evaluate": 7,
    "report": 5,
}


class Config(Section):
    """The whole config."""

    results: str = Field("results/cohort", description="Folder of all outputs.")
    seed: int = Field(1, ge=0, description="Seed of every random draw.")
    cohort: CohortOptions = Field(default_factory=CohortOptions, description="Which slides.")
    pyramid: PyramidOptions = Field(default_factory=PyramidOptions, description="How slides are stored.")
    tissue: TissueOptions = Field(default_factory=TissueOptions, description="Where tissue is.")
    truth: TruthOptions = Field(default_factory=TruthOptions, description="What annotations mean.")
    patches: PatchesOptions = Field(default_factory=PatchesOptions, description="Which patches train the network.")
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="How the network is trained.")
    heatmap: HeatmapOptions = Field(default_factory=HeatmapOptions, description="How slides are predicted.")
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions, description="How predictions are judged.")
    report: ReportOptions = Field(default_factory=ReportOptions, description="The report page.")

    def stage_options(self, stage: str) -> Section:
        """Just the options that can change what `stage` writes."""
        evaluation = self.evaluation
        prediction = {name: getattr(self.heatmap, name) for name in HeatmapRun.model_fields}
        parts: dict[str, dict[str, Any]] = {
            "convert": {name: getattr(self.pyramid, name) for name in PyramidRun.model_fields},
            "tissue": dict(self.tissue),
            "truth": dict(self.truth),
            "patches": {**dict(self.patches), "seed": self.seed},
            # Where weights lie is an input of the rule, not a property of the result.
            "train": {
                **dict(self.training),
                "weights": None,
                "weights_file": None,
                "retrain": "always",
                # Rounds are models of their own.
                "hard_negatives": HardNegativesOptions(),
                "seed": self.seed,
            },
            "negatives": {
                **dict(self.patches),
                "seed": self.seed,
                "per_slide": self.training.hard_negatives.per_slide,
                "min_score": self.training.hard_negatives.min_score,
            },
            "predict": prediction,
            "heatmap": prediction,
            "scores": dict(evaluation.patch_level),
            "detect": dict(evaluation.lesion_level),
            "calibrate": {"operating_point": evaluation.operating_point, "calibration": evaluation.calibration},
            "confusion": dict(evaluation.patch_level),
            "evaluate": {
                "slide_level": evaluation.slide_level,
                "interval": evaluation.interval,
                "seed": self.seed,
                "cohort_name": self.cohort.name,
                "test_set": self.cohort.test_set,
                "synthetic": self.cohort.synthetic,
            },
            "report": {**dict(self.report), "synthetic": self.cohort.synthetic},
        }
        return STAGE_OPTIONS[stage](**parts[stage])
