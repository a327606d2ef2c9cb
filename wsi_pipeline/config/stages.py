"""The stages of the pipeline, in the order of the DAG: the options that can change their outputs, and a version.

This is the only list of stages. The command line, the workflow, receipts and tests read it as `STAGES`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Self

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
from wsi_pipeline.config.slides import PatchesOptions, StorageOptions, TissueOptions, TruthOptions
from wsi_pipeline.config.training import HardNegativesOptions, PredictionOptions, TrainingOptions

if TYPE_CHECKING:
    from wsi_pipeline.config import Config

STAGES: dict[str, type[StageRun]] = {}


class StageRun(Section):
    """Options of a stage, as its command takes them. A subclass with a `stage` of its own is registered in `STAGES`.

    Raise `step_version` by one whenever a change of the code changes the outputs of the stage: the workflow then
    runs the stage again.
    """

    stage: ClassVar[str]
    step_version: ClassVar[int]
    # Dotted name of the section of the config that has the options; None for a stage without options.
    section: ClassVar[str | None] = None
    # Dotted names in the config of the fields that this section does not have.
    elsewhere: ClassVar[dict[str, str]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "stage" in vars(cls):
            STAGES[cls.stage] = cls

    @classmethod
    def of(cls, config: Config) -> Self:
        """The options of this stage according to a config."""
        found = {name: attrgetter(key)(config) for name, key in cls.elsewhere.items()}
        if cls.section is not None:
            section: Section = attrgetter(cls.section)(config)
            found |= {name: getattr(section, name) for name in type(section).model_fields.keys() & cls.model_fields}
        return cls(**found)


class ConvertRun(StorageOptions, StageRun):
    stage = "convert"
    step_version = 6
    section = "pyramid"


class TissueRun(TissueOptions, StageRun):
    stage = "tissue"
    step_version = 7
    section = "tissue"


class TruthRun(TruthOptions, StageRun):
    stage = "truth"
    step_version = 6
    section = "truth"


class PatchesRun(PatchesOptions, StageRun):
    stage = "patches"
    step_version = 4
    section = "patches"
    elsewhere: ClassVar = {"seed": "seed"}

    seed: int = 1


class ManifestRun(StageRun):
    stage = "manifest"
    step_version = 1


class TrainRun(TrainingOptions, StageRun):
    stage = "train"
    step_version = 5
    section = "training"
    elsewhere: ClassVar = {"seed": "seed"}

    seed: int = 1

    @classmethod
    def of(cls, config: Config) -> Self:
        """The options of one training.

        Given weights are tracked by content, and each round of hard negatives is a model of its own: as options they
        would train again whenever a path or the number of rounds changes.
        """
        given = config.training
        training = given.model_copy(
            update={
                "weights": None,
                "weights_file": None,
                "start": "weights" if given.given_weights else given.start,
                "retrain": "always",
                "hard_negatives": HardNegativesOptions(),
            }
        )
        return super().of(config.model_copy(update={"training": training}))


class NegativesRun(PatchesRun):
    stage = "negatives"
    step_version = 3
    elsewhere: ClassVar = {
        "seed": "seed",
        "per_slide": "training.hard_negatives.per_slide",
        "min_score": "training.hard_negatives.min_score",
    }

    per_slide: int = 500
    min_score: float = 0.5


class PredictRun(PredictionOptions, StageRun):
    stage = "predict"
    step_version = 5
    section = "heatmap"


class HeatmapRun(PredictionOptions, StageRun):
    stage = "heatmap"
    step_version = 7
    section = "heatmap"


class ExportRun(StageRun):
    stage = "export"
    step_version = 1


class ScoresRun(PatchLevelOptions, StageRun):
    stage = "scores"
    step_version = 6
    section = "evaluation.patch_level"
    # Scored patches have as much tissue as training patches: glass is normal and easy, and would raise the figures.
    elsewhere: ClassVar = {"min_tissue": "patches.min_tissue"}

    min_tissue: float = 0.75


class DetectRun(LesionLevelOptions, StageRun):
    stage = "detect"
    step_version = 5
    section = "evaluation.lesion_level"


class CalibrateRun(StageRun):
    stage = "calibrate"
    step_version = 2
    section = "evaluation"

    operating_point: OperatingPointOptions = OperatingPointOptions()
    calibration: CalibrationOptions = CalibrationOptions()


class ConfusionRun(PatchLevelOptions, StageRun):
    stage = "confusion"
    step_version = 6
    section = "evaluation.patch_level"
    # Scored patches have as much tissue as training patches: glass is normal and easy, and would raise the figures.
    elsewhere: ClassVar = {"min_tissue": "patches.min_tissue"}

    min_tissue: float = 0.75


class EvaluateRun(StageRun):
    stage = "evaluate"
    step_version = 13
    section = "evaluation"
    elsewhere: ClassVar = {
        "seed": "seed",
        "cohort_name": "cohort.name",
        "test_set": "cohort.test_set",
        "synthetic": "cohort.synthetic",
    }

    slide_level: SlideLevelOptions = SlideLevelOptions()
    interval: IntervalOptions = IntervalOptions()
    seed: int = 1
    cohort_name: str = "cohort"
    test_set: str = "all"
    synthetic: bool = False


class ReportRun(ReportOptions, StageRun):
    stage = "report"
    step_version = 7
    section = "report"
    elsewhere: ClassVar = {"synthetic": "cohort.synthetic"}

    synthetic: bool = False
