"""Contact sheets: every clip, in order, unchanged."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from reelora.errors import ConfigError
from reelora.generate import Clip, contact_sheet, to_png_bytes


def flat(*levels, size=16):
    frames = torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, size, size, 3)
    return Clip(frames=frames, fps=8)


def test_first_and_last_frame_of_every_clip_are_on_the_sheet_unchanged():
    sheet = contact_sheet([flat(10, 11, 12, 13), flat(50, 51, 52, 53)], ["one", "two"], columns=1, frames=2)
    for level, other in ((10, 13), (50, 53)):
        rows, columns = np.nonzero((sheet == level).all(axis=2))
        assert len(rows) == 16 * 16
        assert (sheet[rows, columns + 16 + 2] == other).all()


@pytest.mark.parametrize(("columns", "shape"), [(1, (3, 1)), (2, (2, 2)), (9, (1, 3))])
def test_clips_fill_the_grid_row_by_row(columns, shape):
    clips = [flat(level) for level in (10, 20, 30)]
    sheet = contact_sheet(clips, ["a", "b", "c"], columns=columns, frames=1)
    corners = [tuple(np.argwhere((sheet == level).all(axis=2))[0]) for level in (10, 20, 30)]
    assert corners == sorted(corners)
    assert len({row for row, _ in corners}) == shape[0]
    assert len({column for _, column in corners}) == min(shape[1], 3)


def test_clips_of_different_sizes_and_lengths_share_a_sheet():
    sheet = contact_sheet([flat(10, size=16), flat(*range(20, 37), size=32)], ["", ""], columns=2, frames=5)
    assert (sheet == 36).all(axis=2).sum() == 32 * 32


def test_a_label_stands_above_its_clip_and_never_runs_into_the_next():
    bare = contact_sheet([flat(10), flat(20)], ["", ""], columns=2, frames=1)
    told = contact_sheet([flat(10), flat(20)], ["a red star\nmoves left for a very long time 猫", ""], columns=2, frames=1)
    changed = np.argwhere((bare != told).any(axis=2))
    assert len(changed)
    assert bare.shape == told.shape
    assert changed[:, 1].max() < np.argwhere((told == 20).all(axis=2))[0][1]
    assert changed[:, 0].max() < np.argwhere((told == 10).all(axis=2))[0][0]


def test_a_sheet_makes_a_png():
    sheet = contact_sheet([flat(10)], ["x"], columns=1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png_bytes(sheet)))), sheet)


def test_what_makes_no_sheet_is_refused_with_all_that_is_wrong():
    with pytest.raises(ConfigError, match=r"columns is 0, frames is 0, there are 1 clips and 2 labels"):
        contact_sheet([flat(1)], ["a", "b"], columns=0, frames=0)
    with pytest.raises(ConfigError, match="0 clips"):
        contact_sheet([], [], columns=1)
