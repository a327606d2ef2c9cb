"""The common base of receipts, and the one way to write and to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_pipeline.config import Section, StageRun
from wsi_pipeline.config.loading import section_type
from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import canonical_json

R = TypeVar("R", bound="Receipt")


class Facts(BaseModel):
    """A part of a receipt; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values. Fields that were not given are left out."""
        return self.model_dump(mode="json", exclude_unset=True)


class Receipt(Facts):
    """The receipt of the stage whose options a subclass declares as its field `options`."""

    run: ClassVar[type[StageRun]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.run = cast("type[StageRun]", section_type(cls.model_fields["options"].annotation))

    def as_json(self) -> dict[str, Any]:
        """The content of the file. Fields that were not given are left out; options are written whole."""
        options = {name: value.model_dump(mode="json") for name, value in self if isinstance(value, Section)}
        return {"stage": self.run.stage, "step_version": self.run.step_version, **super().as_json(), **options}


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write a receipt as canonical JSON, last of all: it marks the outputs of its stage as complete."""
    write_text(path, canonical_json(receipt.as_json()))


def read_receipt(path: Path, model: type[R]) -> R:
    """The receipt in a file.

    Raises `StoreError` for a missing or damaged file, a receipt of another stage, and one of another `step_version`.
    """
    stage = model.run.stage
    content = read_any_version(path, stage)
    version = content.pop("step_version", None)
    if version != model.run.step_version:
        raise StoreError(
            f"{path}: written by step_version {version} of the stage {stage}; this is {model.run.step_version}",
            remedy=f"Run the stage {stage} again",
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{path}: not a receipt of the stage {stage} ({where}: {first['msg']})", remedy=_again(stage)
        ) from error


def read_any_version(path: Path, stage: str) -> dict[str, Any]:
    """The unchecked content of a receipt of any `step_version`, without the key `stage`.

    Raises `StoreError` for a missing or damaged file and for a receipt of another stage.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("stage")
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such receipt", remedy=f"Run the stage {stage} first") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise StoreError(f"{path}: not a receipt ({error})", remedy=_again(stage)) from error
    if found != stage:
        raise StoreError(
            f"{path}: a receipt of the stage {found}, not of {stage}",
            remedy="Check the order of the arguments",
        )
    return content


def _again(stage: str) -> str:
    return f"Delete it and run the stage {stage} again"
