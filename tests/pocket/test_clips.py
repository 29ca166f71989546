"""The little world: what it draws and what it keeps back."""

import numpy as np
import pytest

from reelora.pocket import BACKGROUNDS, COLOURS, MOTIONS, NUM_FRAMES, SHAPES, SIZE, draw, known_combinations, sample_scene
from reelora.pocket.clips import OUTLINES, Combination, coverage, is_held_out, outline


def scenes(count, seed=0, shapes=tuple(OUTLINES)):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield sample_scene(rng, Combination(str(rng.choice(shapes)), str(rng.choice(list(COLOURS))), str(rng.choice(MOTIONS))))


def test_the_world_is_as_large_as_promised():
    assert (len(SHAPES), len(COLOURS), len(MOTIONS), len(BACKGROUNDS)) == (3, 8, 7, 4)
    assert (NUM_FRAMES, SIZE) == (17, 64)


def test_one_in_ten_combinations_is_held_out_and_every_pair_of_words_is_seen():
    held_out, known = known_combinations(held_out=True), known_combinations(held_out=False)
    assert len(held_out) / (len(held_out) + len(known)) == pytest.approx(0.1, abs=0.01)
    assert not set(held_out) & set(known)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        every = {(c[first], c[second]) for c in held_out + known}
        assert {(c[first], c[second]) for c in known} == every


def test_no_star_is_known():
    assert all(
        combination.shape != "star" for held_out in (True, False) for combination in known_combinations(held_out=held_out)
    )
    assert is_held_out(known_combinations(held_out=True)[0])


@pytest.mark.parametrize("shape", OUTLINES)
def test_all_outlines_have_the_area_of_the_unit_circle(shape):
    seen = coverage(32 + 10 * outline(shape)[None])[0].sum()
    assert seen == pytest.approx(np.pi * 100, rel=0.02)  # antialiasing at corners loses a little


def test_edges_are_antialiased():
    edge = coverage(32.25 + 10 * outline("square")[None])[0]
    assert set(np.round(edge[32], 2)) - {0, 1}


def test_a_clip_depends_on_its_scene_alone():
    first, second = (draw(next(scenes(1, seed=3))) for _ in range(2))
    assert np.array_equal(first, second)


def test_shapes_stay_inside_the_frame_in_the_colours_of_the_caption():
    for scene in scenes(40):
        clip = draw(scene)
        border = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], axis=1)
        assert (border == BACKGROUNDS[scene.background]).all()
        assert (clip == COLOURS[scene.colour]).all(-1).any((1, 2)).all()


def test_the_caption_says_what_is_drawn():
    scene = next(scenes(1))
    caption = scene.caption()
    assert all(word in caption for word in (scene.shape, scene.colour, scene.motion, scene.background))
    assert scene.caption(noun="twinkle") == caption.replace(scene.shape, "twinkle")
