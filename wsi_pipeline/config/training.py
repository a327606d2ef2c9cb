"""Sections on training and prediction."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsi_pipeline.config.base import Count, Fraction, Name, NonNegative, Positive, Precision, Section

Share = Annotated[float, Field(ge=0, lt=1)]

_PRECISION = "Numbers that convolutions take: float32, bfloat16, or bfloat16 on GPUs only that compute with it (auto)."

# What a recipe sets other than the defaults; whatever a config sets itself wins.
RECIPES: dict[str, dict[str, Any]] = {
    # MathWorks' example: these are the defaults.
    "matlab": {},
    # Liu et al., arXiv:1703.02442: section 3 and, for weights of ImageNet to start from, its learning rate for those.
    "liu2017": {
        "learning_rate": 0.002,
        "squared_gradient_decay": 0.9,
        "momentum": 0.9,
        "epsilon": 1.0,
        "batch_size": 32,
        "schedule": {"kind": "step", "every_patches": 2_000_000, "factor": 0.5},
        "augmentation": {"brightness": 64 / 255, "contrast": 0.75, "saturation": 0.25, "hue": 0.04},
    },
}


class AugmentationOptions(Section):
    """Random changes of training patches."""

    orientations: bool = Field(True, description="Flips and quarter turns, all 8 equally likely.")
    brightness: Fraction = Field(0.25, description="Largest shift of brightness, share of full scale.")
    contrast: Fraction = Field(0.25, description="Largest relative change of contrast.")
    saturation: Fraction = Field(0.25, description="Largest relative change of saturation.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.04, description="Largest turn of hue, share of a circle.")
    stain: Fraction = Field(
        0.0,
        description="Largest relative change of the amounts of haematoxylin and of eosin, each by itself, and a "
        "fifth of it as the largest shift in optical density.",
    )


class ScheduleOptions(Section):
    """How the learning rate changes."""

    kind: Literal["constant", "cosine", "step"] = Field(
        "constant",
        description="As it is (constant); down to final_share of it along half a cosine; or multiplied with factor "
        "after every every_patches (step).",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps over which it rises from zero.")
    final_share: Fraction = Field(0.0, description="For cosine: share of the learning rate at the last step.")
    every_patches: Count = Field(2_000_000, description="For step: patches between two changes.")
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="For step: what it is multiplied with.")


class HardNegativesOptions(Section):
    """Rounds of training on what the round before took for tumour (negatives)."""

    rounds: Annotated[int, Field(ge=0, le=9)] = Field(
        0,
        description="Rounds after the first training: each predicts the training slides, adds their worst false "
        "positives to the patches and trains on from there. Round 1 of the model m is the model m-hard1.",
    )
    per_slide: Count = Field(500, description="Most patches that a slide adds in a round.")
    min_score: Fraction = Field(0.5, description="Least tumour probability of such a patch.")


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
    retrain: Literal["always", "frozen"] = Field(
        "always",
        description="Whether new training slides and other changes train again (always), or a model that is there "
        "stays as it is (frozen).",
    )
    recipe: Literal["matlab", "liu2017"] = Field(
        "matlab",
        description="Values that the keys of this section have where a config does not set them: those of MathWorks' "
        "example, shown here, or those of Liu et al. 2017.",
    )
    optimizer: Literal["rmsprop", "sgd", "adamw"] = Field(
        "rmsprop", description="RMSProp, as the example; stochastic gradient descent with momentum; or AdamW."
    )
    learning_rate: Positive = Field(1e-4, description="Learning rate.")
    squared_gradient_decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="Decay of the mean of squared gradients (RMSProp and AdamW)."
    )
    momentum: Share = Field(0.0, description="Momentum of RMSProp and of gradient descent; AdamW's first beta.")
    epsilon: Positive = Field(1e-8, description="Added to the denominator of RMSProp and AdamW.")
    weight_decay: NonNegative = Field(1e-4, description="L2 penalty; for AdamW the share taken off each step.")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions, description="How the learning rate changes.")
    batch_size: Annotated[int, Field(ge=2)] = Field(256, description="Patches of a step, those of all GPUs together.")
    epochs: Positive = Field(
        1.0, description="Passes over as many patches as the training slides have; sets the number of steps."
    )
    max_steps: Count | None = Field(None, description="Stop after this many steps.")
    auxiliary_weight: NonNegative = Field(
        0.0, description="Weight of the auxiliary head's loss (0.4 in Szegedy et al.); 0 trains without that head."
    )
    label_smoothing: Share = Field(0.0, description="Share of a label that is spread over all classes.")
    clip_norm: Positive | None = Field(None, description="Largest norm of all gradients together; null is any.")
    average_decay: Share = Field(
        0.0, description="Decay of an exponential moving average of the weights, which is then what is kept; 0 is none."
    )
    freeze_steps: Annotated[int, Field(ge=0)] = Field(0, description="First steps in which only the last layer learns.")
    validate_every: Count = Field(250, description="Steps between validations; one more comes at the end.")
    validation_patches: Count = Field(
        20_000, description="Most validation patches that are scored, evenly spread over the slides."
    )
    patience: Count | None = Field(
        None, description="Stop after this many validations without a better one; null trains to the end."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Keep the weights with the highest validation AUC (of equal ones the lowest validation loss), "
        "or the last ones; the others lie beside them as last.safetensors.",
    )
    precision: Precision = Field("auto", description=_PRECISION)
    cpu_threads: Count = Field(2, description="Threads of the network where there is no GPU; part of the result.")
    hard_negatives: HardNegativesOptions = Field(
        default_factory=HardNegativesOptions,
        description="Rounds of training on what the round before took for tumour.",
    )
    augmentation: AugmentationOptions = Field(
        default_factory=AugmentationOptions, description="Random changes of training patches."
    )

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models of all rounds, the last of which is the result."""
        return self.model, *(f"{self.model}-hard{k + 1}" for k in range(self.hard_negatives.rounds))

    @model_validator(mode="after")
    def _taken_weights_stay(self) -> Self:
        if self.weights is not None and self.hard_negatives.rounds:
            raise ValueError("weights that are taken as they are cannot have rounds of hard_negatives")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("recipe") not in RECIPES:
            return values
        return _filled(values, RECIPES[values["recipe"]])


def _filled(values: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """`values`, and those of the recipe that are not among them; sections within are filled too."""
    out = {**recipe, **values}
    for key, own in recipe.items():
        if isinstance(own, dict) and isinstance(values.get(key), dict):
            out[key] = _filled(values[key], own)
    return out


class PredictionOptions(Section):
    """The options of a prediction that change its result. Scale and patch size are the model's."""

    stride_um: Positive | None = Field(None, description="Distance of neighbouring patches, um; null is one patch.")
    min_tissue: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Patches with more than this share of tissue are predicted."
    )
    allow_upsampling: bool = Field(
        False, description="Whether slides that are coarser than the model's scale are predicted all the same."
    )
    orientations: bool = Field(
        False, description="Whether a patch is predicted in all 8 orientations and their mean taken: 8 times the work."
    )
    overlap_mean: bool = Field(
        False,
        description="Whether a position becomes the mean over the patches that cover it; of use where stride_um is "
        "below the size of a patch.",
    )
    smoothing_um: NonNegative = Field(0.0, description="Standard deviation of a Gaussian filter, um; 0 is none.")
    batch_size: Count | None = Field(
        None, description="Patches of one forward pass; null is what is fastest and fits into the device's memory."
    )
    precision: Precision = Field("auto", description=_PRECISION)


class HeatmapOptions(PredictionOptions):
    """How slides are predicted (heatmap). Scale and patch size are the model's."""

    tiff: bool = Field(
        False, description="Whether each heatmap is written as a TIFF too, for programs that do not read OME-Zarr."
    )
    slides_per_job: Count = Field(
        1, description="Slides that a job predicts, one after the other: for small slides, as it loads the model once."
    )
