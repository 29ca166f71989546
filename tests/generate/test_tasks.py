"""The task follows from the model and from what is given; what cannot be is refused with what can."""

import pytest

from reelora.catalog import MODELS
from reelora.errors import ConfigError
from reelora.generate.tasks import task_of

ROWS = {facts.name: facts for facts in MODELS}


@pytest.mark.parametrize(
    ("name", "given", "task"),
    [
        ("CogVideoX-2B", (), "text-to-video"),
        ("CogVideoX-5B", ("video",), "video-to-video"),
        ("CogVideoX1.5-5B", (), "text-to-video"),
        ("CogVideoX1.5-5B", ("video",), "video-to-video"),
        ("CogVideoX-5B-I2V", ("image",), "image-to-video"),
        ("CogVideoX1.5-5B-I2V", ("image",), "image-to-video"),
        ("SD 1.5", (), "text-to-image"),
        ("SDXL", (), "text-to-image"),
        ("pocket", ("video",), "video-to-video"),
    ],
)
def test_every_model_has_its_tasks(name, given, task):
    assert task_of(ROWS[name], has_image="image" in given, has_video="video" in given) == task


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        ("CogVideoX-5B-I2V", (), r"takes 32 channels, its latents have 16.*conditioning image.*use zai-org/CogVideoX-5b\.$"),
        ("CogVideoX1.5-5B-I2V", (), r"conditioning image.*use zai-org/CogVideoX1\.5-5B\.$"),
        ("CogVideoX-5B-I2V", ("video",), r"begins with an image, not with a video. Use zai-org/CogVideoX-5b\.$"),
        (
            "CogVideoX-5B",
            ("image",),
            r"none of its 16 channels is for an image. Use zai-org/CogVideoX-5b-I2V, or begin with a video",
        ),
        ("CogVideoX-2B", ("image",), r"Use its image-to-video sister, or begin with a video"),
        ("SD 1.5", ("image",), r"SD 1\.5 makes still images of text alone: leave an image out"),
        ("SDXL", ("video",), r"leave a video out"),
        ("pocket", ("image", "video"), r"give one of them"),
    ],
)
def test_what_a_model_cannot_take_is_refused_and_one_that_can_is_named(name, given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        task_of(ROWS[name], has_image="image" in given, has_video="video" in given)
