"""What is asked of a model is checked in full before anything is done."""

import pytest

from reelora.catalog import MODELS
from reelora.errors import ConfigError
from reelora.generate import GenerateConfig

VIDEO_MODELS = [facts for facts in MODELS if facts.frame_group > 1]
POCKET = next(facts for facts in MODELS if facts.name == "pocket")


@pytest.mark.parametrize("facts", VIDEO_MODELS, ids=lambda facts: facts.name)
def test_defaults_are_the_models_own(facts):
    config = GenerateConfig.for_model(facts)
    assert (config.num_frames, config.height, config.width) == (facts.default_frames, facts.default_height, facts.default_width)
    assert (config.steps, config.guidance) == (facts.default_steps, facts.default_guidance)


@pytest.mark.parametrize("facts", VIDEO_MODELS, ids=lambda facts: facts.name)
def test_what_the_model_cannot_make_is_refused_with_the_nearest_that_it_can(facts):
    wrong = {"num_frames": facts.default_frames - 1, "height": facts.default_height - 1}
    with pytest.raises(ConfigError, match=rf"{wrong['num_frames']}.*{facts.default_frames}.*{facts.default_height}"):
        GenerateConfig.for_model(facts, **wrong)


def test_everything_that_is_wrong_is_said_at_once_and_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError) as caught:
        GenerateConfig.for_model(POCKET, step=3, guidance=0.5, seed=-1, batch_size=0)
    for part in ("4 of its settings", "did you mean 'steps'", "guidance is 0.5", "seed", "batch_size is 0"):
        assert part in str(caught.value)


@pytest.mark.parametrize("guidance", [0.0, float("nan"), float("inf")])
def test_a_guidance_that_diffusers_would_silently_take_as_off_is_refused(guidance):
    with pytest.raises(ConfigError, match="guidance"):
        GenerateConfig.for_model(POCKET, guidance=guidance)


def test_seeds_count_up_from_one_or_are_given_one_by_one():
    assert GenerateConfig.for_model(POCKET, seed=5).seeds(3) == [5, 6, 7]
    assert GenerateConfig.for_model(POCKET, seed=(9, 9, 1)).seeds(3) == [9, 9, 1]
    with pytest.raises(ConfigError, match="2 seeds for 3 videos"):
        GenerateConfig.for_model(POCKET, seed=[1, 2]).seeds(3)


# ---- sampling


def test_sat_brings_the_guidance_of_its_own_configs_unless_another_is_asked_for():
    assert GenerateConfig.for_model(POCKET, sampling="sat").guidance_schedule == "dynamic"
    assert GenerateConfig.for_model(POCKET, sampling="sat", guidance_schedule="constant").guidance_schedule == "constant"
    assert GenerateConfig.for_model(POCKET).guidance_schedule == "constant"


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"scheduler": "ddmi"}, "pocket has no scheduler 'ddmi': did you mean 'ddim'?"),
        ({"scheduler": "euler"}, "pocket has no scheduler 'euler': known are ddim, dpm"),
        ({"guidance_exponent": 3}, "guidance_exponent is set, but guidance_schedule is 'constant'"),
        ({"sampling": "sat", "negative_prompt": "grey"}, "negative_prompt is 'grey', but SAT leads away from zeros"),
        ({"sampling": "sat", "steps": 1}, "steps is 1, but SAT has schedules of 2 to 999 steps"),
        ({"sampling": "sat", "steps": 1000}, "steps is 1000, but SAT has schedules of 2 to 999 steps"),
        ({"sampling": "sat", "num_frames": 1}, "num_frames is 1, but SAT decodes three latent frames or more"),
        (
            {"sampling": "sat", "guidance_schedule": "constant", "guidance_exponent": 3},
            "guidance_exponent is set, but guidance_schedule is 'constant'",
        ),
        ({"sampling": "sta"}, "sampling is 'sta'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_what_to_do(settings, what):
    with pytest.raises(ConfigError) as caught:
        GenerateConfig.for_model(POCKET, **settings)
    assert what in str(caught.value)


def test_all_contradictions_are_said_at_once():
    with pytest.raises(ConfigError, match=r"contradictory: negative_prompt.*; steps is 1"):
        GenerateConfig.for_model(POCKET, sampling="sat", negative_prompt="grey", steps=1)
