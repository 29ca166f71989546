"""Laws of a LoRA's settings."""

import json
import math

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from reelora.adapters import ATTENTION_TARGETS, LoraSpec
from reelora.errors import ConfigError


def test_the_defaults_are_cogvideos():
    spec = LoraSpec()
    assert (spec.rank, spec.alpha, spec.scale) == (128, 64, 0.5)
    assert spec.target_modules == ATTENTION_TARGETS == ("to_q", "to_k", "to_v", "to_out.0")


def test_rslora_divides_by_the_square_root():
    assert LoraSpec(rank=64, alpha=16, rslora=True).scale == 16 / math.sqrt(64)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.5}, r"rank is 2\.5"),
        ({"rank": True}, "rank is True"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": -1}, "alpha is -1"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"alpha": 10**400}, "alpha is 1000"),
        ({"alpha": "64"}, "alpha is '64'"),
        ({"init": "kaimin"}, "did you mean 'kaiming'"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"rslora": "yes"}, "rslora is 'yes'"),
        ({"target_modules": ()}, "at least one module"),
        ({"target_modules": ("to_q", "")}, "holds ''"),
        ({"target_modules": "to_(q"}, "no regular expression"),
        ({"rank_pattern": {"to_q": 0}}, r"rank_pattern\['to_q'\] is 0"),
        ({"alpha_pattern": {"(": 1}}, "no pattern for module paths: it opens a bracket that is never closed"),
        ({"alpha_pattern": 3}, "has to map"),
    ],
)
def test_what_is_impossible_is_refused_with_what_would_be_right(setting, message):
    with pytest.raises(ConfigError, match=message):
        LoraSpec(**setting)


def test_everything_impossible_is_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        LoraSpec(rank=0, alpha=-1, init="zeros", dropout=2)  # pyright: ignore[reportArgumentType]
    assert str(caught.value).count("\n- ") == 4


def test_a_list_of_targets_becomes_a_tuple():
    assert LoraSpec(target_modules=["to_q"]) == LoraSpec(target_modules=("to_q",))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("targets", "path", "expected"),
    [
        (("to_q",), "blocks.0.attn1.to_q", True),
        (("to_q",), "to_q", True),
        (("to_q",), "blocks.0.attn1.add_to_q", False),
        (("0.attn1.to_q",), "blocks.10.attn1.to_q", False),
        (("to_out.0",), "blocks.0.attn1.to_out.0", True),
        (r".*attn\d\.to_q", "blocks.0.attn1.to_q", True),
        (r"attn\d\.to_q", "blocks.0.attn1.to_q", False),
    ],
)
def test_targets_are_whole_components_or_a_regular_expression_as_in_peft(targets, path, expected):
    from peft.tuners.tuners_utils import check_target_module_exists

    spec = LoraSpec(target_modules=targets)
    assert spec.targets(path) is expected
    assert bool(check_target_module_exists(peft.LoraConfig(**spec.to_peft_dict()), path)) is expected


@pytest.mark.parametrize(
    "pattern", ["to_q", r"1\.attn1\.to_q", "^blocks.1.attn1.to_q", "blocks.1", r"blocks\.\d+\.attn1\.to_q"]
)
@pytest.mark.parametrize("path", ["blocks.1.attn1.to_q", "blocks.11.attn1.to_q", "x.blocks.1.attn1.to_q", "to_q"])
def test_patterns_are_looked_up_as_in_peft(pattern, path):
    pefts = {pattern: 7}.get(get_pattern_key([pattern], path), 128)
    assert LoraSpec(rank_pattern={pattern: 7}).rank_of(path) == pefts


@given(
    rank=st.integers(1, 512),
    alpha=st.floats(0.01, 1e4) | st.integers(1, 512),
    dropout=st.floats(0, 0.9),
    rslora=st.booleans(),
    init=st.sampled_from(["kaiming", "gaussian"]),
    patterns=st.dictionaries(st.sampled_from(["to_q", "to_k", r"0\.to_v"]), st.integers(1, 64)),
)
def test_settings_survive_the_way_through_peft_and_json(rank, alpha, dropout, rslora, init, patterns):
    spec = LoraSpec(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        rslora=rslora,
        init=init,
        rank_pattern=patterns,
        alpha_pattern=patterns,
        target_modules=("to_k", "to_q"),  # PEFT keeps a set, of which we make a sorted tuple
    )
    fields = json.loads(json.dumps(spec.to_peft_dict()))
    assert LoraSpec.from_peft(fields) == spec
    assert LoraSpec.from_peft(peft.LoraConfig(**fields)) == spec


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["proj_out"]},
        {"layers_to_transform": [0], "layers_pattern": "blocks"},
        {"exclude_modules": ["to_q"]},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": False},
        {"target_parameters": ["x.weight"]},
    ],
)
def test_a_peft_setting_that_we_do_not_have_is_refused_by_name(setting):
    config = peft.LoraConfig(**{"target_modules": ["to_q"], **setting})
    with pytest.raises(ConfigError, match=next(iter(setting))):
        LoraSpec.from_peft(config)
    with pytest.raises(ConfigError, match=next(iter(setting))):
        LoraSpec.from_peft({**config.to_dict()})


def test_a_peft_config_of_another_method_is_refused():
    with pytest.raises(ConfigError, match="LOHA"):
        LoraSpec.from_peft(peft.LoHaConfig(r=4, target_modules=["to_q"]))


def test_what_is_no_config_at_all_is_refused():
    with pytest.raises(ConfigError, match="not int"):
        LoraSpec.from_peft(3)
    with pytest.raises(ConfigError, match="target_modules is missing"):
        LoraSpec.from_peft(peft.LoraConfig(r=4))


def test_describing_finds_the_commonest_and_pins_the_rest():
    ranks = {"a.to_q": 4, "a.to_k": 4, "b.to_q": 8}
    spec = LoraSpec.describing(ranks, {"a.to_q": 0.5, "a.to_k": 0.25, "b.to_q": 0.5})
    assert {path: (spec.rank_of(path), spec.scale_of(path)) for path in ranks} == {
        "a.to_q": (4, 0.5),
        "a.to_k": (4, 0.25),
        "b.to_q": (8, 0.5),
    }
    assert spec.rank_of("xb.to_q") == spec.rank_of("b_to_q") == 4
