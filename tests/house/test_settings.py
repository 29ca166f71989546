"""Settings: typed, frozen, and clear about what is wrong."""

import os
import tomllib
from math import inf
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reelora.errors import ConfigError
from reelora.recipes import TrainConfig


def test_unknown_keys_are_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"loop\.optimizer\.learning_rat is unknown: did you mean 'learning_rate'"):
        TrainConfig.of({"loop": {"optimizer": {"learning_rat": 1}}})


def test_everything_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        TrainConfig.of({"modle": "x", "loop": {"steps": 0, "batch_size": "many"}})
    assert all(name in str(error.value) for name in ("modle", "loop.steps", "loop.batch_size", "3 of its settings"))


@pytest.mark.parametrize("value", ["0", "big", "-3"])
def test_a_value_that_fits_none_of_several_types_is_one_problem_by_its_own_name(value):
    with pytest.raises(ConfigError) as error:
        TrainConfig.with_overrides([f"data.num_frames={value}"])
    assert "1 of its settings" in str(error.value)
    assert f"- data.num_frames is {value if value != 'big' else repr(value)}: " in str(error.value)
    assert "'model'" in str(error.value)


def test_settings_survive_their_file(tmp_path):
    config = TrainConfig.with_overrides(["loop.steps=7", 'model="a \\"b\\" c"', "data.held_out=3", "lora.rank=16"])
    path = tmp_path / "run.toml"
    path.write_text(config.toml(), encoding="utf-8")
    assert TrainConfig.read_toml(path) == config


def test_the_commented_file_holds_the_defaults_and_every_setting(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TrainConfig().commented_toml(), encoding="utf-8")
    assert TrainConfig.read_toml(path) == TrainConfig()
    assert "learning_rate = 0.0001" in path.read_text()


@given(st.text(st.characters(codec="utf-8"), min_size=1))
@example("\x7f")
def test_any_text_can_be_a_model_name(name):
    config = TrainConfig.of({"model": name})
    assert tomllib.loads(config.toml())["model"] == name


def test_an_infinite_number_survives_its_file():
    config = TrainConfig.with_overrides(["prior.weight=inf"])
    assert tomllib.loads(config.toml())["prior"]["weight"] == inf


def test_text_that_no_file_can_hold_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r'1 of its settings .*\n- folder = "caf\\udce9" holds half a character'):
        TrainConfig.of({"data": {"folder": Path(os.fsdecode(b"caf\xe9"))}})


@pytest.mark.parametrize("pair", ["loop.steps", "=3", "model.name=x"])
def test_a_bad_override_is_refused(pair):
    with pytest.raises(ConfigError, match="--set"):
        TrainConfig.with_overrides(["model=pocket", pair])


def test_overrides_beat_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[loop]\nsteps = 5\nseed = 2\n")
    config = TrainConfig.read_toml(path, overrides=["loop.steps=9"])
    assert (config.loop.steps, config.loop.seed) == (9, 2)


def test_a_file_that_is_no_toml_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("steps: 5")
    with pytest.raises(ConfigError, match=r"run\.toml"):
        TrainConfig.read_toml(path)


def test_settings_never_change():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().model = "other"  # pyright: ignore[reportAttributeAccessIssue]
