"""The config: one model for each section, each field with its default, unit and meaning.

`config/defaults.yaml` and `workflow/schemas/config.schema.json` are generated from these models
(`wsi-pipeline config`). Lengths are micrometres, scales um per pixel; threads, memory and partitions
are not config but belong to rules and profiles. The one exception is `training.cpu_threads`: the number of threads
that share a sum decides its last bits, so a reproducible result has to fix it.

Every room may import this package; it imports `errors` only.
"""

from __future__ import annotations

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
    StorageOptions,
    TissueOptions,
    TruthOptions,
)
from wsi_pipeline.config.stages import (
    STAGES,
    CalibrateRun,
    ConfusionRun,
    ConvertRun,
    DetectRun,
    EvaluateRun,
    ExportRun,
    HeatmapRun,
    NegativesRun,
    PatchesRun,
    PredictRun,
    ReportRun,
    ScoresRun,
    StageRun,
    TissueRun,
    TrainRun,
    TruthRun,
)
from wsi_pipeline.config.training import (
    AugmentationOptions,
    HardNegativesOptions,
    HeatmapOptions,
    PredictionOptions,
    TrainingOptions,
)

__all__ = [
    "CLASSES",
    "NAME_PATTERN",
    "STAGES",
    "AugmentationOptions",
    "CalibrateRun",
    "CalibrationOptions",
    "CohortOptions",
    "Config",
    "ConfusionRun",
    "ConvertRun",
    "DetectRun",
    "EvaluateRun",
    "EvaluationOptions",
    "ExportRun",
    "HardNegativesOptions",
    "HeatmapOptions",
    "HeatmapRun",
    "IntervalOptions",
    "LabelRule",
    "LesionLevelOptions",
    "NegativesRun",
    "OperatingPointOptions",
    "PatchLevelOptions",
    "PatchesOptions",
    "PatchesRun",
    "Precision",
    "PredictRun",
    "PredictionOptions",
    "PyramidOptions",
    "ReportOptions",
    "ReportRun",
    "ScoresRun",
    "Section",
    "SlideLevelOptions",
    "StageRun",
    "StorageOptions",
    "TissueOptions",
    "TissueRun",
    "TrainRun",
    "TrainingOptions",
    "TruthOptions",
    "TruthRun",
]


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
