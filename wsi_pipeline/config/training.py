"""Config sections of training and prediction."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsi_pipeline.config.base import Count, Fraction, Name, NonNegative, Positive, Precision, Section

Share = Annotated[float, Field(ge=0, lt=1)]

_PRECISION = "Data type of convolutions: float32, bfloat16, or auto (bfloat16 on GPUs that support it, else float32)."

# Values by recipe that replace the defaults. Values set in the config take precedence.
RECIPES: dict[str, dict[str, Any]] = {
    # MathWorks' example, whose values are the defaults.
    "matlab": {},
    # Liu et al., arXiv:1703.02442, section 3, with its learning rate for a start from ImageNet weights.
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
    """Data augmentation of training patches."""

    orientations: bool = Field(True, description="Random flips and quarter turns, all 8 orientations equally likely.")
    brightness: Fraction = Field(0.25, description="Maximum shift of brightness, share of full scale.")
    contrast: Fraction = Field(0.25, description="Maximum relative change of contrast.")
    saturation: Fraction = Field(0.25, description="Maximum relative change of saturation.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.04, description="Maximum rotation of hue, share of a full turn."
    )
    stain: Fraction = Field(
        0.0,
        description="Maximum relative change of the amounts of haematoxylin and of eosin, drawn independently; a "
        "fifth of it is the maximum shift of their optical density.",
    )


class ScheduleOptions(Section):
    """Learning rate schedule."""

    kind: Literal["constant", "cosine", "step"] = Field(
        "constant",
        description="constant; cosine: decay to final_share along half a cosine; step: multiply by factor after every "
        "every_patches patches.",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps of linear warm-up from zero.")
    final_share: Fraction = Field(
        0.0, description="For cosine: learning rate of the last step, share of learning_rate."
    )
    every_patches: Count = Field(2_000_000, description="For step: training patches between two changes.")
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="For step: factor of each change.")


class HardNegativesOptions(Section):
    """Hard negative mining: rounds of training on false positives of the previous round (stage negatives)."""

    rounds: Annotated[int, Field(ge=0, le=9)] = Field(
        0,
        description="Rounds after the first training. Each predicts the training slides, adds their highest-scoring "
        "false positives to the patches and continues training. Round 1 of model m is model m-hard1.",
    )
    per_slide: Count = Field(500, description="Maximum number of patches that a slide adds per round.")
    min_score: Fraction = Field(0.5, description="Minimum tumour probability of an added patch.")


class TrainingOptions(Section):
    """Training of the network (stage train)."""

    model: Name = Field("inception_v3", description="Name of the model, and of its folder in <results>/model.")
    weights: str | None = Field(
        None,
        description="weights.safetensors of a trained model, with model.json beside it if there is one: used as it "
        "is, without patches and training. null trains.",
    )
    start: str = Field(
        "imagenet",
        description="Initial weights: imagenet, random, or the path of another model's weights.safetensors.",
    )
    weights_file: str | None = Field(
        None,
        description="Local copy of torchvision's inception_v3_google-0cc3c7bd.pth for start: imagenet; "
        "null downloads it.",
    )
    retrain: Literal["always", "frozen"] = Field(
        "always",
        description="always: train again when the training slides or other inputs change. frozen: keep an existing "
        "model as it is.",
    )
    recipe: Literal["matlab", "liu2017"] = Field(
        "matlab",
        description="Values of the keys of this section that the config does not set: those of MathWorks' example, "
        "shown here (matlab), or those of Liu et al. 2017 (liu2017).",
    )
    optimizer: Literal["rmsprop", "sgd", "adamw"] = Field(
        "rmsprop",
        description="rmsprop, as in MathWorks' example; sgd: stochastic gradient descent with momentum; or adamw.",
    )
    learning_rate: Positive = Field(1e-4, description="Learning rate.")
    squared_gradient_decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="Decay of the moving average of squared gradients (rmsprop, adamw)."
    )
    momentum: Share = Field(0.0, description="Momentum of rmsprop and sgd; beta 1 of adamw.")
    epsilon: Positive = Field(1e-8, description="Added to the denominator for numerical stability (rmsprop, adamw).")
    weight_decay: NonNegative = Field(1e-4, description="L2 penalty; decoupled weight decay for adamw.")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions, description="Learning rate schedule.")
    batch_size: Annotated[int, Field(ge=2)] = Field(256, description="Patches per step, over all GPUs.")
    epochs: Positive = Field(
        1.0, description="Length of the training in passes over the training patches; sets the number of steps."
    )
    max_steps: Count | None = Field(None, description="Maximum number of steps; null is no limit.")
    auxiliary_weight: NonNegative = Field(
        0.0, description="Weight of the auxiliary head's loss (0.4 in Szegedy et al.); 0 trains without that head."
    )
    label_smoothing: Share = Field(0.0, description="Label smoothing: share of a label spread over all classes.")
    clip_norm: Positive | None = Field(None, description="Maximum norm of the gradient; null is no clipping.")
    average_decay: Share = Field(
        0.0, description="Decay of the exponential moving average of the weights that is kept as the model; 0 is none."
    )
    freeze_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Number of initial steps that train the last layer only."
    )
    validate_every: Count = Field(250, description="Steps between validations; there is one more at the end.")
    validation_patches: Count = Field(
        20_000, description="Maximum number of validation patches, spread evenly over the slides."
    )
    patience: Count | None = Field(
        None, description="Stop after this many validations without improvement; null is no early stopping."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights to keep as the model. best: highest validation AUC, and of equal ones lowest validation "
        "loss; the last weights are kept too, as last.safetensors. last: the last weights.",
    )
    precision: Precision = Field("auto", description=_PRECISION)
    cpu_threads: Count = Field(2, description="CPU threads of the training without a GPU; changes the last bits.")
    hard_negatives: HardNegativesOptions = Field(
        default_factory=HardNegativesOptions,
        description="Hard negative mining: rounds of training on false positives of the previous round.",
    )
    augmentation: AugmentationOptions = Field(
        default_factory=AugmentationOptions, description="Data augmentation of training patches."
    )

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models of all rounds; the last one is evaluated."""
        return self.model, *(f"{self.model}-hard{k + 1}" for k in range(self.hard_negatives.rounds))

    @property
    def given_weights(self) -> str | None:
        """Path of the weights that are the model or that its training starts from; None for random and ImageNet."""
        return self.weights or (None if self.start in ("random", "imagenet") else self.start)

    @model_validator(mode="after")
    def _given_weights_are_not_trained(self) -> Self:
        if self.weights is not None and self.hard_negatives.rounds:
            raise ValueError("weights are used as they are, so hard_negatives.rounds must be 0")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("recipe") not in RECIPES:
            return values
        return _merged(RECIPES[values["recipe"]], values)


def _merged(recipe: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over those of the recipe, recursively."""
    out = {**recipe, **values}
    for key, own in recipe.items():
        if isinstance(own, dict) and isinstance(values.get(key), dict):
            out[key] = _merged(own, values[key])
    return out


class PredictionOptions(Section):
    """The prediction options that change the result. Scale and patch size are those of the model."""

    stride_um: Positive | None = Field(None, description="Distance of neighbouring patches, um; null is one patch.")
    min_tissue: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Only patches with more than this share of tissue are predicted."
    )
    allow_upsampling: bool = Field(
        False, description="Predict slides that are more than 20 % coarser than the model's scale too, by upsampling."
    )
    orientations: bool = Field(
        False, description="Test-time augmentation: mean over all 8 orientations of a patch, at 8 times the cost."
    )
    overlap_mean: bool = Field(
        False,
        description="Replace each position by the mean over the patches that cover it; useful where stride_um is "
        "smaller than a patch.",
    )
    smoothing_um: NonNegative = Field(0.0, description="Standard deviation of the Gaussian filter, um; 0 is none.")
    batch_size: Count | None = Field(
        None, description="Patches per forward pass; null is the fastest size that fits into the device's memory."
    )
    precision: Precision = Field("auto", description=_PRECISION)


class HeatmapOptions(PredictionOptions):
    """Prediction of heatmaps (stages predict and heatmap). Scale and patch size are those of the model."""

    tiff: bool = Field(False, description="Write each heatmap as TIFF too, for programs that do not read OME-Zarr.")
    slides_per_job: Count = Field(
        1, description="Slides predicted by one job, which loads the model once; raise it for small slides."
    )
