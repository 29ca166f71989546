"""Grids: every cell at its place under its labels, playing together, with the metadata of all."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from reelora.errors import ConfigError
from reelora.generate import Axis, Clip, arrange_axes, grid_sheet, grid_video, read_video_metadata

STYLE = Axis(name="style", values=(0, 0.5, 1))
SEED = Axis(name="seed", values=(1, 2))
STEPS = Axis(name="steps", values=(10, 20))

LARGE = 160
"""Pixels of a side at which a cell is neither enlarged nor reduced."""


def flat(*levels, size=LARGE):
    """A clip whose frames are red of these levels, as no letter is."""
    frames = torch.zeros(len(levels), size, size, 3, dtype=torch.uint8)
    frames[..., 0] = torch.tensor(levels, dtype=torch.uint8)[:, None, None]
    return Clip(frames=frames, fps=8, metadata={"level": levels[0], "prompt": "red"})


def cells(count, size=LARGE):
    return [flat(40 + 8 * index, size=size) for index in range(count)]


def box_of(picture, level):
    """Top, left, bottom and right of what is exactly of a level of red."""
    where = np.argwhere(is_level(picture, level))
    return (*where.min(axis=0), *(where.max(axis=0) + 1))


def is_level(picture, level):
    return (np.asarray(picture) == (level, 0, 0)).all(axis=2)


def changed(one, other):
    where = np.argwhere((np.asarray(one) != np.asarray(other)).any(axis=2))
    return (*where.min(axis=0), *(where.max(axis=0) + 1))


# ---- places


def test_cells_come_row_by_row_and_pixel_by_pixel():
    sheet = grid_sheet(cells(6), rows=STYLE, columns=SEED).frames[0]
    boxes = [box_of(sheet, 40 + 8 * index) for index in range(6)]
    assert all((bottom - top, right - left) == (LARGE, LARGE) for top, left, bottom, right in boxes)
    assert len({top for top, *_ in boxes}) == 3
    assert len({left for _, left, *_ in boxes}) == 2
    assert boxes == sorted(boxes)


def test_the_video_has_the_cells_where_the_sheet_has_them():
    clips = cells(6)
    sheet, video = (make(clips, rows=STYLE, columns=SEED) for make in (grid_sheet, grid_video))
    assert torch.equal(sheet.frames, video.frames)


def test_cells_play_together_and_a_shorter_one_stays_at_its_end():
    video = grid_video([flat(40, 41, 42), flat(80)], rows=(), columns=SEED)
    assert [box_of(frame, level) for frame, level in zip(video.frames, (40, 41, 42), strict=True)] == [
        box_of(video.frames[0], 40)
    ] * 3
    assert len({box_of(frame, 80) for frame in video.frames}) == 1
    assert video.fps == 8


@pytest.mark.parametrize(("frames", "levels"), [(1, [44]), (2, [40, 48]), (3, [40, 44, 48]), (99, list(range(40, 49)))])
def test_a_cell_of_a_sheet_is_its_middle_frame_or_a_strip(frames, levels):
    clip = flat(*range(40, 49))
    sheet = grid_sheet([clip, clip], rows=(), columns=SEED, frames=frames).frames[0]
    shown = [level for level in range(40, 49) if is_level(sheet, level).any()]
    assert shown == levels
    lefts = [box_of(np.asarray(sheet)[:, : sheet.shape[1] // 2], level)[1] for level in shown]
    assert lefts == sorted(lefts)


# ---- labels


def test_labels_stand_beside_the_rows_and_above_the_columns_and_touch_no_cell():
    clips = cells(6)
    told = grid_sheet(clips, rows=STYLE, columns=SEED).frames[0]
    other_rows = grid_sheet(clips, rows=replace(STYLE, name="style", values=(0, 0.5, 7)), columns=SEED).frames[0]
    other_columns = grid_sheet(clips, rows=STYLE, columns=replace(SEED, values=(1, 7))).frames[0]
    top, left, bottom, right = changed(told, other_rows)
    third_row, second_column = box_of(told, 40 + 8 * 4), box_of(told, 40 + 8)
    assert third_row[0] <= top < bottom <= third_row[2]
    assert right <= third_row[1]
    top, left, bottom, right = changed(told, other_columns)
    assert second_column[1] <= left < right <= second_column[3]
    assert bottom <= second_column[0]


def test_labels_are_the_name_and_the_value_as_it_was_typed():
    values = (0, 0.5, 1.0, 0.1, 1e-05, True, "a cat")
    assert Axis(name="x", values=values).labels == ("x=0", "x=0.5", "x=1", "x=0.1", "x=1e-05", "x=True", "x=a cat")


@pytest.mark.parametrize("axes", [{"rows": True}, {"columns": True}])
def test_a_label_that_is_longer_than_its_room_moves_no_pixel_into_a_cell(axes):
    long = Axis(name="prompt", values=("a red circle that moves left " * 20, "wordwithoutanyspaceinit" * 20, "猫\n\x00"))
    clips = cells(3)
    rows, columns = (long, ()) if "rows" in axes else ((), long)
    sheet = grid_sheet(clips, rows=rows, columns=columns, title="and a title " * 60).frames[0]
    for index in range(3):
        top, left, bottom, right = box_of(sheet, 40 + 8 * index)
        assert ((bottom - top), (right - left)) == (LARGE, LARGE)
        assert is_level(sheet[top:bottom, left:right], 40 + 8 * index).all()


def test_a_title_stands_above_all():
    bare, told = (grid_sheet(cells(6), rows=STYLE, columns=SEED, title=title).frames[0] for title in ("", "a red circle"))
    higher = told.shape[0] - bare.shape[0]
    assert higher > 0
    assert abs(box_of(told, 40)[0] - box_of(bare, 40)[0] - higher) <= 1  # its height is even
    assert (np.asarray(told[:higher]) < 128).any()


# ---- axes


def test_several_axes_are_nested_and_their_groups_stand_apart():
    rows, columns = arrange_axes([STYLE, STEPS, SEED])
    assert (rows, columns) == ((STYLE,), (STEPS, SEED))
    sheet = grid_sheet(cells(12), rows=rows, columns=columns).frames[0]
    lefts = [box_of(sheet, 40 + 8 * index)[1] for index in range(4)]
    steps = np.diff(lefts)
    assert steps[0] == steps[2] < steps[1]


@pytest.mark.parametrize(("count", "shape"), [(1, (0, 1)), (2, (1, 1)), (3, (1, 2)), (4, (2, 2))])
def test_axes_as_named_give_the_order_of_their_product(count, shape):
    axes = [Axis(name=f"a{index}", values=(0, 1)) for index in range(count)]
    rows, columns = arrange_axes(axes)
    assert (len(rows), len(columns)) == shape
    assert rows + columns == tuple(axes)
    points = list(product(*(axis.values for axis in axes)))
    video = grid_video(cells(len(points), size=16), rows=rows, columns=columns)
    tops_and_lefts = [box_of(video.frames[0], 40 + 8 * index)[:2] for index in range(len(points))]
    assert tops_and_lefts == sorted(tops_and_lefts)


# ---- sizes


@pytest.mark.parametrize(("size", "shown"), [(64, 128), (16, 128), (100, 200), (128, 128), (200, 200)])
def test_small_cells_are_enlarged_by_whole_numbers(size, shown):
    pattern = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    pattern[:, ::2, ::3, 0] = 77
    sheet = grid_sheet([Clip(frames=pattern, fps=8)] * 2, rows=(), columns=SEED).frames[0]
    top, left, *_ = box_of(sheet, 77)
    cell = np.asarray(sheet)[top : top + shown, left : left + shown]
    factor = shown // size
    assert np.array_equal(cell[::factor, ::factor], pattern[0])
    assert np.array_equal(cell, np.asarray(pattern[0]).repeat(factor, 0).repeat(factor, 1))


def test_a_grid_that_no_player_decodes_is_reduced():
    many = Axis(name="seed", values=tuple(range(30)))
    clips = [flat(200, size=400)] * 30
    video = grid_video(clips, rows=(), columns=many)
    assert 3500 < max(video.size) <= 4096
    assert is_level(video.frames[0], 200).sum() > 30 * 100 * 100


def test_a_grid_that_would_show_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"1 x 400 cells does not fit 4096 pixels.*Make several grids"):
        grid_video([flat(40, size=16)] * 400, rows=(), columns=Axis(name="seed", values=tuple(range(400))))


@pytest.mark.parametrize("size", [151, 160])
def test_a_grid_can_be_saved_as_a_video_whatever_its_cells_are(tmp_path, size):
    video = grid_video(cells(6, size=size), rows=STYLE, columns=SEED)
    assert (video.size[1] % 2, video.size[2] % 2) == (0, 0)
    assert video.save(tmp_path / "grid.mp4")


# ---- metadata


@pytest.mark.parametrize("name", ["grid.mp4", "grid.png"])
def test_a_grid_holds_the_metadata_of_every_cell(tmp_path, name):
    clips = cells(6)
    make = grid_video if name == "grid.mp4" else grid_sheet
    [path] = make(clips, rows=STYLE, columns=SEED).save(tmp_path / name)
    told = read_video_metadata(path)
    assert told["cells"] == [clip.metadata for clip in clips]
    assert told["grid"] == {
        "rows": [{"name": "style", "values": [0, 0.5, 1]}],
        "columns": [{"name": "seed", "values": [1, 2]}],
    }


def test_the_same_cells_give_the_same_grid():
    one, other = (grid_video(cells(6), rows=STYLE, columns=SEED, title="x") for _ in range(2))
    assert torch.equal(one.frames, other.frames)
    assert one.metadata == other.metadata


# ---- refusals


def test_what_makes_no_grid_is_refused_with_all_that_is_wrong():
    clips = [*cells(4), flat(1, size=32), replace(flat(1), fps=16)]
    with pytest.raises(ConfigError, match=r"6 of them, and 2 x 2 places; .*sizes: \(32, 32\), \(160, 160\); .*rates: 8, 16"):
        grid_sheet(clips, rows=STEPS, columns=SEED)
    with pytest.raises(ConfigError, match="an axis is named twice in seed, seed"):
        grid_sheet(cells(4), rows=SEED, columns=SEED)
    with pytest.raises(ConfigError, match="0 of them, and 3 x 2 places"):
        grid_video([], rows=STYLE, columns=SEED)
    with pytest.raises(ConfigError, match="frames is 0"):
        grid_sheet(cells(6), rows=STYLE, columns=SEED, frames=0)


def test_an_axis_without_values_or_with_one_twice_is_refused():
    with pytest.raises(ConfigError, match=r"'style' has no values; give one or more, such as style=0,0\.5,1"):
        Axis(name="style", values=())
    with pytest.raises(ConfigError, match=r"values that come twice: style=1\. Give each once"):
        Axis(name="style", values=(1, 0.5, 1.0))
