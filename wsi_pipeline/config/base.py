"""Base class and field types of the config sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Class names of slides and patches; the index is the class label.
CLASSES = ("normal", "tumor")

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

# Scales of images, um per pixel: those of any scanned slide.
MPP_RANGE = (0.05, 50)

Mpp = Annotated[float, Field(ge=MPP_RANGE[0], le=MPP_RANGE[1])]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
LabelRule = Literal["centre_nearest", "centre_region", "area_fraction"]
LesionProtocol = Literal["slide_scale", "camelyon16"]
# The corner that coordinates count from: that of the whole level 0, or of the part of it that was scanned.
Origin = Literal["canvas", "bounds"]
TissueMethod = Literal["otsu_saturation", "glass_saturation", "otsu_gray", "gray_threshold"]
Precision = Literal["auto", "float32", "bfloat16"]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def is_plausible_mpp(mpp: float) -> bool:
    """Whether `mpp` is within `MPP_RANGE`; NaN and infinity are not."""
    return MPP_RANGE[0] <= mpp <= MPP_RANGE[1]


class Section(BaseModel):
    """A frozen section of the config. Unknown keys, infinity and NaN are validation errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
