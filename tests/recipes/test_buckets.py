"""Sizes that clips may have."""

import pytest

from reelora.catalog import MODELS
from reelora.errors import ConfigError
from reelora.recipes import DataConfig

FACTS = {row.name: row for row in MODELS}
VIDEO = [row for row in MODELS if row.model_class == "CogVideoXTransformer3DModel"]


@pytest.mark.parametrize("facts", VIDEO, ids=lambda facts: facts.name)
@pytest.mark.parametrize("media", ["videos", "both"])
def test_every_automatic_size_is_one_that_the_model_can_do_and_the_models_own_comes_first(facts, media):
    sizes = DataConfig(buckets="auto", media=media).sizes(facts)
    assert sizes[0] == (facts.default_frames, facts.default_height, facts.default_width)
    for num_frames, height, width in sizes:
        facts.check_video(num_frames=num_frames, height=height, width=width)
    assert facts.is_size_fixed or {1, 9} & {num_frames for num_frames, _, _ in sizes} or facts.frame_group == 16


def test_automatic_sizes_of_cogvideox_are_upright_square_and_wide_at_about_one_area():
    sizes = DataConfig(buckets="auto").sizes(FACTS["CogVideoX-2B"])
    shapes = {(height, width) for _, height, width in sizes}
    assert {(480, 720), (720, 480), (592, 592), (512, 672), (672, 512)} <= shapes
    assert all(0.9 < height * width / (480 * 720) < 1.05 for height, width in shapes)
    assert {num_frames for num_frames, _, _ in sizes} == {9, 17, 25, 33, 41, 49}


def test_a_model_whose_positions_are_fixed_has_one_bucket():
    assert len(set(DataConfig(buckets="auto").sizes(FACTS["CogVideoX-5B-I2V"]))) == 1


def test_everything_wrong_with_a_list_of_sizes_is_said_at_once():
    config = DataConfig(buckets=("49x480x720", "48x480x720", "49x481x720"))
    with pytest.raises(ConfigError, match=r"(?s)num_frames is 48.*height is 481"):
        config.sizes(FACTS["CogVideoX-5B"])
