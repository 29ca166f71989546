"""Names of files: the first free one, and which frames belong to which clip."""

from dataclasses import replace

import pytest
import torch

from reelora.generate import Clip, free_path
from reelora.generate.names import files_of, first_file, frame_path, frame_paths


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".png", ""])
def test_a_name_that_is_taken_is_numbered_and_the_first_free_one_is_found(tmp_path, suffix):
    clip = Clip(frames=torch.zeros(2, 8, 8, 3, dtype=torch.uint8), fps=8)
    wanted = tmp_path / f"cat{suffix}"
    names = []
    for _ in range(3):
        names.append(free_path(wanted))
        clip.save(names[-1])
    assert [name.name for name in names] == [f"cat{suffix}", f"cat-1{suffix}", f"cat-2{suffix}"]
    for file in files_of(names[1], 2):
        file.unlink()
    assert free_path(wanted) == names[1]


def test_names_that_other_clips_of_a_call_will_have_are_not_free(tmp_path):
    taken = []
    for _ in range(3):
        taken.append(free_path(tmp_path / "cat.mp4", taken=taken))
    assert [name.name for name in taken] == ["cat.mp4", "cat-1.mp4", "cat-2.mp4"]


def test_a_still_picture_takes_a_name_too(tmp_path):
    Clip(frames=torch.zeros(1, 8, 8, 3, dtype=torch.uint8), fps=8).save(tmp_path / "cat.png")
    assert free_path(tmp_path / "cat.png").name == "cat-1.png"
    assert free_path(str(tmp_path / "cat")).name == "cat-1"


@pytest.mark.parametrize("last", [0, 9, 9_999, 10_000, 123_456])
def test_frames_are_found_in_their_order_however_many_there_are(tmp_path, last):
    path = tmp_path / "cat.png"
    wanted = [frame_path(path, index) for index in sorted({0, last // 2, last})]
    for file in wanted:
        file.touch()
    assert frame_paths(path) == wanted
    assert first_file(path) == wanted[0]


def test_files_of_other_clips_are_none_of_its_frames(tmp_path, drawn):
    replace(drawn, frames=drawn.frames[:2]).save(tmp_path / "cat-1.png")
    (tmp_path / "cat_00.png").touch()
    (tmp_path / "cat_0000.jpg").touch()
    assert frame_paths(tmp_path / "cat.png") == []
    assert frame_paths(tmp_path / "nowhere" / "cat.png") == []
