"""The pixel judge against clips whose content is known."""

import numpy as np
import pytest

from reelora.pocket import COLOURS, MOTIONS, draw, judge, sample_scene
from reelora.pocket.clips import OUTLINES, Combination

PER_SHAPE = 56
"""Every colour with every motion."""


@pytest.fixture(scope="module", params=[0, 8], ids=["clean", "noisy"])
def table(request):
    """Each drawn clip's truth and verdict."""
    rng = np.random.default_rng(1)
    wanted = [Combination(s, c, m) for s in OUTLINES for c in COLOURS for m in MOTIONS]
    rows = []
    for combination in wanted:
        clip = draw(sample_scene(rng, combination))
        noisy = np.clip(clip + rng.normal(0, request.param, clip.shape), 0, 255).astype(np.uint8)
        rows.append((combination, judge(noisy)))
    return rows


@pytest.mark.parametrize("part", ["shape", "colour", "motion"])
def test_the_judge_is_right_in_at_least_98_percent(table, part):
    hits = [getattr(want, part) == getattr(seen, part) for want, seen in table]
    assert np.mean(hits) >= 0.98


def test_a_star_is_seen_in_at_most_2_percent_of_other_shapes(table):
    others = [seen.shape == "star" for want, seen in table if want.shape != "star"]
    assert np.mean(others) <= 0.02


@pytest.mark.parametrize("shape", OUTLINES)
def test_every_shape_is_recognised_by_itself(table, shape):
    hits = [seen.shape == shape for want, seen in table if want.shape == shape]
    assert len(hits) == PER_SHAPE
    assert np.mean(hits) >= 0.98


def test_an_empty_clip_shows_nothing():
    verdict = judge(np.full((17, 64, 64, 3), 128, np.uint8))
    assert (verdict.shape, verdict.colour, verdict.motion) == (None, None, None)


def test_noise_shows_no_star():
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (10, 17, 64, 64, 3), dtype=np.uint8)
    assert all(judge(clip).shape != "star" for clip in clips)


def test_the_larger_of_two_objects_is_judged():
    rng = np.random.default_rng(2)
    scene = sample_scene(rng, Combination("square", "red", "stands still"), background="black")
    clip = draw(scene)
    clip[:, 1:4, 1:4] = COLOURS["blue"]
    assert (judge(clip).shape, judge(clip).colour) == ("square", "red")


def test_an_object_that_is_missing_in_many_frames_is_none():
    scene = sample_scene(np.random.default_rng(2), Combination("square", "red", "moves left"), background="black")
    clip = draw(scene)
    clip[::2] = 16
    assert judge(clip).shape is None


def test_an_object_whose_colour_turns_into_its_opposite_is_none():
    clip = np.full((16, 64, 64, 3), 128, np.uint8)
    clip[:8, 20:40, 20:40], clip[8:, 20:40, 20:40] = 250, 10
    with np.errstate(all="raise"):
        assert judge(clip).shape is None
