"""Sections on training and prediction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wsi_pipeline.config.base import Count, Fraction, Name, NotNegative, Positive, Section


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
