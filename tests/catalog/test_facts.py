"""The frame and size rules of the published models."""

import pytest

from reelora.catalog import MODELS
from reelora.errors import ConfigError

ROWS = {facts.name: facts for facts in MODELS}


@pytest.mark.parametrize("facts", MODELS, ids=lambda facts: facts.name)
def test_every_model_can_do_its_own_defaults(facts):
    facts.check_video(num_frames=facts.default_frames, height=facts.default_height, width=facts.default_width)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("CogVideoX-2B", [1, 9, 17, 25, 33, 41, 49]),
        ("CogVideoX-5B", [1, 9, 17, 25, 33, 41, 49]),
        ("CogVideoX-5B-I2V", [49]),
        ("CogVideoX1.5-5B", [1, 17, 33, 49, 65, 81, 97, 113, 129, 145, 161]),
        ("pocket", [1, 9, 17]),
    ],
)
def test_the_frames_that_a_model_can_do_are_those_of_its_readme_and_no_others(name, frames):
    """8N + 1 with N up to 6, and 16N + 1 with N up to 10: README of zai-org/CogVideo, table of models."""
    facts = ROWS[name]

    def can(num_frames):
        try:
            facts.check_video(num_frames=num_frames, height=facts.default_height, width=facts.default_width)
        except ConfigError:
            return False
        return True

    assert [count for count in range(-3, 300) if can(count)] == frames


@pytest.mark.parametrize(("num_frames", "latents"), [(1, 1), (17, 5), (49, 13), (81, 21), (161, 41)])
def test_latent_frames_of_the_published_lengths(num_frames, latents):
    assert ROWS["CogVideoX-5B"].latent_frames(num_frames) == latents


@pytest.mark.parametrize(("num_frames", "padded"), [(1, 2), (17, 6), (81, 22), (161, 42), (13, 4), (29, 8)])
def test_15_pads_its_latents_to_whole_pairs_and_only_then(num_frames, padded):
    """42 and 22 latent frames are what SAT samples; a peer that adds a pair to an even count is wrong (13 frames: 4)."""
    assert ROWS["CogVideoX1.5-5B"].padded_latent_frames(num_frames) == padded
    assert ROWS["CogVideoX-5B"].padded_latent_frames(num_frames) == ROWS["CogVideoX-5B"].latent_frames(num_frames)


@pytest.mark.parametrize(("num_frames", "hint"), [(0, "1"), (-8, "1"), (48, "45 or 49"), (50, "49 or 53")])
def test_frames_that_make_no_whole_latents_name_the_nearest_that_do(num_frames, hint):
    with pytest.raises(ConfigError, match=rf"takes 4n \+ 1 frames: {hint}\."):
        ROWS["CogVideoX-5B"].latent_frames(num_frames)


@pytest.mark.parametrize(
    ("name", "num_frames", "hint"),
    [
        ("CogVideoX-5B", 48, "41 or 49"),
        ("CogVideoX-5B", 81, "49"),
        ("CogVideoX-5B", 0, "1"),
        ("CogVideoX1.5-5B", 49 + 8, "49 or 65"),
        ("CogVideoX1.5-5B", 1000, "161"),
        ("pocket", 49, "17"),
    ],
)
def test_impossible_frames_name_the_nearest(name, num_frames, hint):
    facts = ROWS[name]
    with pytest.raises(ConfigError, match=rf"num_frames is {num_frames}, .*: try {hint}\.$"):
        facts.check_video(num_frames=num_frames, height=facts.default_height, width=facts.default_width)


@pytest.mark.parametrize(
    ("name", "height", "width", "hint"),
    [
        ("CogVideoX-5B", 481, 719, "height is 481, .*: try 480 or 496; width is 719, .*: try 704 or 720"),
        ("CogVideoX-5B", 480, 1360, "width is 1360, .*: try 720"),
        ("CogVideoX-5B", 0, 720, "height is 0, .*: try 16"),
        ("CogVideoX-5B-I2V", 480, 480, "width is 480, its learned position table allows only 720"),
        ("CogVideoX1.5-5B", 768, 1361, "width is 1361, .*: try 1360"),
        ("SD 1.5", 510, 512, "height is 510, .* multiple of 8 .*: try 504 or 512"),
    ],
)
def test_impossible_sizes_name_the_nearest(name, height, width, hint):
    """The peer's own check looks at names that do not exist and accepts 481x719."""
    facts = ROWS[name]
    with pytest.raises(ConfigError, match=hint):
        facts.check_video(num_frames=facts.default_frames, height=height, width=width)


@pytest.mark.parametrize("name", ["CogVideoX-2B", "CogVideoX-5B", "CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V"])
def test_portrait_is_as_good_as_landscape(name):
    facts = ROWS[name]
    facts.check_video(num_frames=facts.default_frames, height=facts.default_width, width=facts.default_height)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError, match=r"num_frames is 50.*height is 1.*width is 2"):
        ROWS["CogVideoX-5B"].check_video(num_frames=50, height=1, width=2)


def test_whatever_is_asked_what_is_named_is_possible():
    facts = ROWS["CogVideoX1.5-5B"]
    for num_frames in range(-5, 200):
        try:
            facts.check_video(num_frames=num_frames, height=768, width=1360)
        except ConfigError as refusal:
            hints = str(refusal).rstrip(".").rpartition("try ")[2].split(" or ")
            for hint in map(int, hints):
                facts.check_video(num_frames=hint, height=768, width=1360)


def test_the_sister_of_an_image_model_is_a_row_that_makes_videos_of_text():
    published = {facts.hub_id: facts for facts in MODELS}
    sisters = [facts.text_to_video for facts in MODELS if facts.text_to_video]
    assert len(sisters) == 2
    for sister in sisters:
        assert not published[sister].needs_image


@pytest.mark.parametrize(
    ("name", "fps", "tokens", "scale", "shift", "scheduler"),
    [
        ("CogVideoX-2B", 8, 226, 1.15258426, 3.0, "CogVideoXDDIMScheduler"),
        ("CogVideoX-5B", 8, 226, 0.7, 1.0, "CogVideoXDPMScheduler"),
        ("CogVideoX-5B-I2V", 8, 226, 0.7, 1.0, "CogVideoXDPMScheduler"),
        ("CogVideoX1.5-5B", 16, 224, 0.7, 1.0, "CogVideoXDPMScheduler"),
        ("CogVideoX1.5-5B-I2V", 16, 224, 0.7, 1.0, "CogVideoXDPMScheduler"),
    ],
)
def test_training_facts_are_those_of_the_published_sat_configs(name, fps, tokens, scale, shift, scheduler):
    """``sat/configs`` of zai-org/CogVideo at 7a1af71: scale_factor, shift_scale, text_length."""
    facts = ROWS[name]
    assert (facts.fps, facts.num_text_tokens, facts.scaling_factor) == (fps, tokens, scale)
    assert (facts.snr_shift_scale, facts.scheduler) == (shift, scheduler)
