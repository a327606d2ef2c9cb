from __future__ import annotations

import difflib
import json
import re
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT
from wsi_pipeline.config import STAGES, Config, Section, TissueRun, TrainRun
from wsi_pipeline.config.generated import defaults_yaml, schema_json
from wsi_pipeline.config.loading import check_weights, load_config, options_json, parse_options
from wsi_pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "generated"),
    [("config/defaults.yaml", defaults_yaml), ("workflow/schemas/config.schema.json", schema_json)],
)
def test_generated_files_are_up_to_date(name: str, generated: Any) -> None:
    found, wanted = (ROOT / name).read_text(), generated()
    diff = "\n".join(difflib.unified_diff(found.splitlines(), wanted.splitlines(), name, "models", lineterm=""))
    assert found == wanted, f"run `make generated`\n{diff}"


def test_defaults_file_is_the_default_config() -> None:
    assert load_config(yaml.safe_load(defaults_yaml())) == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path: Any) -> None:
    load_config(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tisue": {}}, "unknown key tisue (did you mean tissue?)"),
        ({"tissue": {"metod": 1}}, "unknown key tissue.metod (did you mean method?)"),
        ({"evaluation": {"operating_point": {"treshold": 1}}}, "operating_point.treshold (did you mean threshold?)"),
        ({"tissue": {"zzz": 1}}, "known keys: mpp, method"),
        ({"tissue": {"mpp": 1000}}, "tissue.mpp: Input should be less than or equal to 50 (given: 1000)"),
        ({"pyramid": {"shard_px": 1000}}, "shard_px 1000 is no multiple of chunk_px 512"),
        ({"training": {"model": "../x"}}, "training.model"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_options_survive_the_command_line(stage: str) -> None:
    options = STAGES[stage].of(Config(seed=7))
    text = options_json(options)
    assert json.loads(text)["step_version"] == STAGES[stage].step_version
    assert parse_options(STAGES[stage], text) == options


@pytest.mark.parametrize("version", [0, 99])
def test_options_of_another_step_version_are_refused(version: int) -> None:
    with pytest.raises(ConfigError, match=f"step_version {version}"):
        parse_options(TissueRun, json.dumps({"step_version": version}))


def test_every_field_has_a_description() -> None:
    def check(section: Section) -> int:
        fields = type(section).model_fields
        missing = [name for name, field in fields.items() if not field.description]
        assert not missing, f"{type(section).__name__}: {missing}"
        inner = [value for name in fields if isinstance(value := getattr(section, name), Section)]
        return len(fields) + sum(map(check, inner))

    assert check(Config()) > 60


def test_weights_file_and_retrain_are_not_options_of_the_stage_train() -> None:
    here = TrainRun.of(load_config({"training": {"weights_file": "a.pth", "retrain": "frozen"}}))
    assert here == TrainRun.of(Config())


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"weights": "none.safetensors"}, "weights"),
        ({"start": "none.safetensors"}, "start"),
        ({"weights_file": "none.pth"}, "weights_file"),
        ({"weights_file": "none.pth", "start": "random"}, None),
        ({}, None),
    ],
)
def test_weights_that_do_not_exist_are_refused(training: dict[str, str], key: str | None) -> None:
    config = load_config({"training": training})
    if key is None:
        check_weights(config)
    else:
        with pytest.raises(ConfigError, match=rf"training\.{key}: none\.\w+: no such file"):
            check_weights(config)


def test_the_path_of_given_weights_is_no_option_of_the_stage_train() -> None:
    one, other = (TrainRun.of(load_config({"training": {"start": f"{name}.safetensors"}})) for name in "ab")
    assert one == other != TrainRun.of(Config())


def test_the_slurm_profile_covers_every_rule() -> None:
    rules = set[str]()
    local = set[str]()
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        text = path.read_text()
        rules |= set(re.findall(r"^\s*rule (\w+):", text, re.MULTILINE))
        for names in re.findall(r"^\s*localrules:\n((?:\s+\w+,\n)+)", text, re.MULTILINE):
            local |= set(re.findall(r"\w+", names))
    assert "imagenet_weights" in local
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.yaml").read_text())
    assert set(profile["set-resources"]) == rules - local
