"""Validation of configs and of stage options from the command line, with one-line errors."""

from __future__ import annotations

import difflib
import json
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from wsi_pipeline.config import Config, Section, StageRun
from wsi_pipeline.errors import ConfigError

S = TypeVar("S", bound=Section)
R = TypeVar("R", bound=StageRun)


def load_config(values: dict[str, Any]) -> Config:
    """Validate a config. Raises `ConfigError`, which names the key and, for a misspelt one, the closest known key."""
    return validate(Config, values, "config")


def check_weights(config: Config) -> None:
    """Raise `ConfigError` where a file of weights that the config names does not exist."""
    training = config.training
    key = "weights" if training.weights else "start" if training.given_weights else "weights_file"
    path = training.given_weights or (training.weights_file if training.start == "imagenet" else None)
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"training.{key}: {path}: no such file")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file. Raises `ConfigError` if it cannot be read or does not hold a mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: the config cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a mapping of keys to values")
    return values


def options_json(options: StageRun) -> str:
    """Options of a stage as one line of JSON, with its `step_version`, for the stage's `--options`."""
    values = {"step_version": options.step_version, **options.model_dump(mode="json")}
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


def parse_options(model: type[R], text: str) -> R:
    """The inverse of `options_json`. Raises `ConfigError`, also for options of another `step_version`."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"options of {model.stage}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"options of {model.stage}: not a JSON object")
    version = values.pop("step_version", model.step_version)
    if version != model.step_version:
        raise ConfigError(
            f"options of {model.stage}: step_version {version}, but the installed package has {model.step_version}",
            remedy="Install the package of this checkout (make setup)",
        )
    return validate(model, values, f"options of {model.stage}")


def validate(model: type[S], values: Any, where: str) -> S:
    """`values` as a `model`. Raises a `ConfigError` that starts with `where` and lists all errors in one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(model, e) for e in error.errors())) from error


def _explain(model: type[Section], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location) or "(top)"
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(model, location[:-1]))
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key} ({hint})"
    given = "" if isinstance(error["input"], dict) else f" (given: {error['input']!r})"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}{given}"


def _fields_at(model: type[Section], location: list[str]) -> dict[str, Any]:
    for part in location:
        field = model.model_fields.get(part)
        inner = section_type(field.annotation) if field else None
        if inner is None:
            return {}
        model = inner
    return dict(model.model_fields)


def section_type(annotation: Any) -> type[Section] | None:
    """The section in the annotation of a field, which may be optional; None for a field of another type."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
