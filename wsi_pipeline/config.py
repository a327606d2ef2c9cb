"""The config: one model for each section, each field with its default, unit and meaning.

`config/defaults.yaml` and `workflow/schemas/config.schema.json` are generated from these models
(`wsi-pipeline config`). Lengths are micrometres, scales um per pixel; threads, memory and partitions
are not config but belong to rules and profiles. The one exception is `cpu_threads`: how many threads
share a sum decides its last bits, so a result that is to be the same anywhere has to fix it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What a slide or a patch is; the number of a class is its place.
CLASSES = ("normal", "tumor")

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

# Raised by one where a stage's results change: everything that it made is then made again.
STEP_VERSIONS = {
    "convert": 2,
    "tissue": 2,
    "truth": 2,
    "patches": 2,
    "train": 2,
    "heatmap": 1,
    "confusion": 1,
    "detect": 1,
    "evaluate": 3,
    "report": 2,
}

Mpp = Annotated[float, Field(ge=0.05, le=50)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
LabelRule = Literal["centre_nearest", "centre_region", "area_fraction"]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Section(BaseModel):
    """Frozen options that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CohortOptions(Section):
    """Which slides."""

    name: str = Field("cohort", description="Name of the cohort, for the report.")
    slides: str = Field("config/slides.tsv", description="The slide sheet, a TSV file.")
    synthetic: bool = Field(
        False, description="Whether the slides are drawn by a program; said wherever results are shown."
    )
    exclude: tuple[str, ...] = Field(
        (), description="Slides of the sheet that are left out; every evaluation names them."
    )
    test_set: Name = Field("all", description="Name of the whole set of test slides, printed with the figures.")
    public_buckets: bool = Field(False, description="Whether s3:// paths of the sheet are read without credentials.")


class PyramidOptions(Section):
    """How slides are stored (convert)."""

    passthrough: bool = Field(
        True,
        description="Whether levels that are JPEG tiles are copied tile by tile, not decoded: the store then has "
        "the size and the pixels of the slide.",
    )
    codec: Literal["jpeg", "zstd"] = Field(
        "jpeg", description="What levels that are not copied are compressed with: jpeg, or zstd without loss."
    )
    quality: Annotated[int, Field(ge=1, le=100)] = Field(90, description="JPEG quality.")
    subsampling: Literal["444", "422", "420"] = Field("444", description="JPEG chroma subsampling; 444 is none.")
    zstd_level: Annotated[int, Field(ge=1, le=19)] = Field(3, description="Zstandard level.")
    chunk_px: Annotated[int, Field(ge=64, le=4096)] = Field(
        512, description="Edge of a chunk, the smallest part that is read, in pixels, where tiles are not copied."
    )
    shard_px: Annotated[int, Field(ge=64, le=16384)] = Field(
        4096,
        description="Edge of a shard, one file, in pixels; a multiple of chunk_px (of the tiles, about this much).",
    )
    damaged_tiles: Literal["error", "white"] = Field(
        "error",
        description="What a damaged tile of the slide is: an error, or white and listed in the receipt; white "
        "decodes every tile to find them.",
    )
    verify: Literal["sample", "all"] = Field(
        "sample",
        description="Which tiles of the finished store are decoded and compared with OpenSlide's pixels: 16 a level, "
        "or all.",
    )

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Self:
        if self.shard_px % self.chunk_px:
            raise ValueError(f"shard_px {self.shard_px} is no multiple of chunk_px {self.chunk_px}")
        return self


class TissueOptions(Section):
    """Where tissue is (tissue)."""

    mpp: Mpp = Field(8.0, description="Scale of the mask, um per pixel.")
    method: Literal["otsu_saturation", "otsu_gray", "gray_threshold"] = Field(
        "otsu_saturation",
        description="Saturation or grey value above or below Otsu's threshold of the whole slide, "
        "or grey below a fixed threshold.",
    )
    threshold: Annotated[float, Field(ge=0, le=255)] | None = Field(
        None,
        description="Fixed threshold, 0 to 255, instead of the one found; "
        "gray_threshold takes 150 where it is null. The sheet's column tissue_threshold sets it for one slide.",
    )
    remove_pen: bool = Field(True, description="Whether blue, green and black ink is taken out.")
    closing_um: NotNegative = Field(40.0, description="Gaps up to this width are closed, um.")
    min_hole_um2: NotNegative = Field(40_000.0, description="Smaller holes are filled, um².")
    min_area_um2: NotNegative = Field(20_000.0, description="Smaller pieces are left out, um².")


class TruthOptions(Section):
    """What annotations mean (truth)."""

    mpp: Mpp = Field(8.0, description="Scale of the truth image, um per pixel.")
    tumor_groups: tuple[str, ...] = Field(
        ("_0", "_1", "Tumor", "metastases"), description="Annotation groups that are tumour."
    )
    cutout_groups: tuple[str, ...] = Field(
        ("_2", "Exclusion", "normal"), description="Groups that are cut out of tumour and are normal tissue."
    )
    ignore_groups: tuple[str, ...] = Field(
        ("Ignore*",), description="Groups that are neither: not trained on, not scored."
    )
    ignore_margin_um: NotNegative = Field(
        0.0, description="Width of a band on either side of the borders of tumour that is ignored too, um."
    )


class PatchesOptions(Section):
    """Which patches train the network (patches)."""

    mpp: Mpp = Field(0.25, description="Scale of a patch, um per pixel.")
    size_px: Annotated[int, Field(ge=75, le=2048)] = Field(299, description="Edge of a patch, pixels.")
    border_px: Annotated[int, Field(ge=0, le=512)] = Field(
        0, description="More pixels stored on each side, within which training moves the patch at random."
    )
    stride_um: Positive | None = Field(None, description="Distance of neighbouring positions, um; null is one patch.")
    min_tissue: Fraction = Field(0.75, description="Least share of a patch that is tissue.")
    label_rule: LabelRule = Field(
        "area_fraction",
        description="Label of a patch: tumour where at least min_tumor of its area is and normal where none is, what "
        "lies between is left out (area_fraction); tumour where its central region has any (centre_region); or the "
        "truth pixel nearest to its centre (centre_nearest).",
    )
    min_tumor: Annotated[float, Field(gt=0, le=1)] = Field(0.75, description="Least share of tumour for area_fraction.")
    region_um: Positive = Field(32.0, description="Edge of the central region of centre_region, um.")
    max_tumor: Count = Field(1000, description="Most tumour patches of a slide.")
    max_normal: Count = Field(1000, description="Most normal patches of a slide.")
    normal_per_tumor: Positive | None = Field(
        None, description="Most normal patches of a slide with tumour patches, for each of these; null is any number."
    )
    codec: Literal["jpeg", "zstd"] = Field("jpeg", description="How patches are stored: jpeg, or zstd without loss.")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(95, description="JPEG quality; chroma is not subsampled.")


class AugmentationOptions(Section):
    """Random changes of training patches."""

    orientations: bool = Field(True, description="Flips and quarter turns, all 8 equally likely.")
    brightness: Fraction = Field(0.25, description="Largest shift of brightness, share of full scale.")
    contrast: Fraction = Field(0.25, description="Largest relative change of contrast.")
    saturation: Fraction = Field(0.25, description="Largest relative change of saturation.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.04, description="Largest turn of hue, share of a circle.")


class TrainingOptions(Section):
    """How the network is trained (train)."""

    model: Name = Field("inception_v3", description="Name of the model, a folder below <results>/model.")
    weights: str | None = Field(
        None,
        description="A trained model's weights.safetensors (model.json beside it, if any): "
        "patches and training are skipped and it is used as it is. null trains.",
    )
    start: str = Field(
        "imagenet",
        description="Weights to start from: imagenet, random, or the path of another model's weights.safetensors.",
    )
    weights_file: str | None = Field(
        None,
        description="Local copy of torchvision's inception_v3_google-0cc3c7bd.pth for start: imagenet; "
        "null downloads it.",
    )
    optimizer: Literal["rmsprop"] = Field("rmsprop", description="RMSProp, as the example.")
    learning_rate: Positive = Field(1e-4, description="Learning rate.")
    squared_gradient_decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="Decay of RMSProp's mean of squared gradients."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Momentum of RMSProp.")
    epsilon: Positive = Field(1e-8, description="Added to RMSProp's denominator.")
    weight_decay: NotNegative = Field(1e-4, description="L2 penalty.")
    batch_size: Annotated[int, Field(ge=2)] = Field(256, description="Patches of a step.")
    epochs: Positive = Field(
        1.0, description="Passes over as many patches as the training slides have; sets the number of steps."
    )
    max_steps: Count | None = Field(None, description="Stop after this many steps.")
    validate_every: Count = Field(250, description="Steps between validations; one more comes at the end.")
    validation_patches: Count = Field(
        20_000, description="Most validation patches that are scored, evenly spread over the slides."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Keep the weights with the highest validation AUC (of equal ones the lowest validation loss), "
        "or the last ones.",
    )
    cpu_threads: Count = Field(2, description="Threads of the network where there is no GPU; part of the result.")
    augmentation: AugmentationOptions = Field(
        default_factory=AugmentationOptions, description="Random changes of training patches."
    )


class HeatmapOptions(Section):
    """How slides are predicted (heatmap). Scale and patch size are the model's."""

    stride_um: Positive | None = Field(None, description="Distance of neighbouring patches, um; null is one patch.")
    min_tissue: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Patches with more than this share of tissue are predicted."
    )
    batch_size: Count = Field(128, description="Patches of one forward pass.")
    cpu_threads: Count = Field(2, description="Threads of the network where there is no GPU; part of the result.")


class OperatingPointOptions(Section):
    """Where probability becomes a decision."""

    rule: Literal["fixed"] = Field("fixed", description="How the threshold is chosen; fixed is the given one.")
    threshold: Fraction = Field(0.8, description="A patch is called tumour at or above this probability.")


class PatchLevelOptions(Section):
    """Which patches are tumour when predictions are judged."""

    label_rule: LabelRule = Field(
        "centre_nearest",
        description="Truth of a patch: the truth pixel nearest to its centre, any tumour in its central region, "
        "or at least min_tumor of its area.",
    )
    region_um: Positive = Field(32.0, description="Edge of the central region of centre_region, um.")
    min_tumor: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="Least share of tumour for area_fraction.")


class LesionLevelOptions(Section):
    """Detections and the lesions that they are matched with (detect)."""

    method: Literal["suppression", "components"] = Field(
        "suppression",
        description="What is one detection: a maximum after non-maximum suppression, or a connected area at or above "
        "min_score, at its maximum.",
    )
    radius_um: Positive = Field(192.0, description="Radius of non-maximum suppression, um.")
    min_score: Fraction = Field(0.5, description="Detections below this probability are not made.")
    merge_um: NotNegative = Field(75.0, description="Foci up to this far apart are one lesion, um.")
    itc_um: NotNegative = Field(
        275.0, description="Lesions whose major axis is shorter are isolated tumour cells and not scored, um."
    )


class IntervalOptions(Section):
    """Confidence intervals: bootstrap over slides."""

    resamples: Annotated[int, Field(ge=100)] = Field(2000, description="Bootstrap resamples.")
    level: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Level of the intervals.")


class EvaluationOptions(Section):
    """How predictions are judged (confusion, detect, evaluate)."""

    operating_point: OperatingPointOptions = Field(
        default_factory=OperatingPointOptions, description="Where probability becomes a decision."
    )
    patch_level: PatchLevelOptions = Field(default_factory=PatchLevelOptions, description="Truth of a patch.")
    lesion_level: LesionLevelOptions = Field(default_factory=LesionLevelOptions, description="Detections and lesions.")
    interval: IntervalOptions = Field(default_factory=IntervalOptions, description="Confidence intervals.")


class ReportOptions(Section):
    """The report page."""

    title: str = Field("Tumour classification on whole-slide images", description="Title of the page.")
    thumbnail_px: Annotated[int, Field(ge=128, le=2048)] = Field(
        640, description="Longer edge of a slide's picture, pixels."
    )


class PatchDraw(PatchesOptions):
    """Options of the stage patches."""

    seed: int = 1


class TrainingRun(TrainingOptions):
    """Options of the stage train."""

    seed: int = 1


class ConfusionOptions(Section):
    """Options of the stage confusion."""

    operating_point: OperatingPointOptions = OperatingPointOptions()
    patch_level: PatchLevelOptions = PatchLevelOptions()


class EvaluateOptions(Section):
    """Options of the stage evaluate."""

    interval: IntervalOptions = IntervalOptions()
    seed: int = 1
    cohort_name: str = "cohort"
    test_set: str = "all"
    synthetic: bool = False


class ReportRun(ReportOptions):
    """Options of the stage report."""

    synthetic: bool = False


STAGE_OPTIONS: dict[str, type[Section]] = {
    "convert": PyramidOptions,
    "tissue": TissueOptions,
    "truth": TruthOptions,
    "patches": PatchDraw,
    "train": TrainingRun,
    "heatmap": HeatmapOptions,
    "confusion": ConfusionOptions,
    "detect": LesionLevelOptions,
    "evaluate": EvaluateOptions,
    "report": ReportRun,
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
        parts: dict[str, dict[str, Any]] = {
            "convert": dict(self.pyramid),
            "tissue": dict(self.tissue),
            "truth": dict(self.truth),
            "patches": {**dict(self.patches), "seed": self.seed},
            # Where weights lie is an input of the rule, not a property of the result.
            "train": {
                **dict(self.training),
                "weights": None,
                "weights_file": None,
                "seed": self.seed,
            },
            "heatmap": dict(self.heatmap),
            "confusion": {
                "operating_point": evaluation.operating_point,
                "patch_level": evaluation.patch_level,
            },
            "detect": dict(evaluation.lesion_level),
            "evaluate": {
                "interval": evaluation.interval,
                "seed": self.seed,
                "cohort_name": self.cohort.name,
                "test_set": self.cohort.test_set,
                "synthetic": self.cohort.synthetic,
            },
            "report": {**dict(self.report), "synthetic": self.cohort.synthetic},
        }
        return STAGE_OPTIONS[stage](**parts[stage])
