"""The config: one pydantic model per section, each field with its default, unit and description.

`config/defaults.yaml` and `workflow/schemas/config.schema.json` are generated from these models
(`wsi-pipeline config`, `make generated`). Lengths are in um, scales in um per pixel. Threads, memory and partitions
are set in rules and profiles, not here. The exception is `training.cpu_threads`: the number of threads changes the
order of floating-point sums and so the last bits of the weights.
"""

from __future__ import annotations

from pydantic import Field

from wsi_pipeline.config.base import CLASSES, NAME_PATTERN, Precision, Section
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
    HeatmapOptions,
    PredictionOptions,
    TrainingOptions,
)


class Config(Section):
    """The whole config."""

    results: str = Field("results/cohort", description="Folder for all outputs.")
    seed: int = Field(1, ge=0, description="Seed of all random draws.")
    cohort: CohortOptions = Field(default_factory=CohortOptions, description="The cohort of slides.")
    pyramid: PyramidOptions = Field(default_factory=PyramidOptions, description="Storage of slides.")
    tissue: TissueOptions = Field(default_factory=TissueOptions, description="Tissue detection.")
    truth: TruthOptions = Field(default_factory=TruthOptions, description="Meaning of the annotations.")
    patches: PatchesOptions = Field(default_factory=PatchesOptions, description="Training and validation patches.")
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="Training of the network.")
    heatmap: HeatmapOptions = Field(default_factory=HeatmapOptions, description="Prediction of heatmaps.")
    evaluation: EvaluationOptions = Field(
        default_factory=EvaluationOptions, description="Evaluation of the predictions."
    )
    report: ReportOptions = Field(default_factory=ReportOptions, description="The report page.")
