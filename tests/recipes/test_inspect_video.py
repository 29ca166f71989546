"""What is told of a video: of ours how it was made, of any other what it is."""

import json

import numpy as np
import pytest
import torch
from films import write_film
from PIL import Image

from reelora import recipes
from reelora.errors import FileFormatError
from reelora.generate import Axis, Clip, grid_video
from reelora.generate.metadata import READABLE
from reelora.recipes.inspect_video import VIDEO_SUFFIXES

METADATA = {
    "prompt": "a red disc\x1b[2J",
    "seed": 7,
    "guidance": 6.5,
    "negative_prompt": "",
    "model": {"name": "CogVideoX-2B", "hub_id": "", "fingerprint": "ab" * 32},
    "adapters": [{"name": "style", "strength": 0.8, "scales": [0.5]}, {"name": "slow", "strength": 1.0, "scales": [0.25]}],
    "reelora": "0.1.0",
}


@pytest.fixture
def clip():
    return Clip(frames=torch.zeros(9, 48, 64, 3, dtype=torch.uint8), fps=8, metadata=METADATA)


def rows(path):
    return recipes.fact_rows(recipes.inspect_video(path).facts)


def told(path):
    return dict(rows(path))


@pytest.mark.parametrize("name", ["cat.mp4", "cat.webm", "cat.gif", "cat.webp", "cat.png"])
def test_a_video_of_ours_says_how_it_was_made_in_every_format(clip, tmp_path, name):
    clip.save(tmp_path / name)
    found = told(tmp_path / name)
    assert (found["prompt"], found["seed"], found["guidance"]) == ("a red disc\\x1b[2J", "7", "6.5")
    assert "48 x 64" in found["pictures"]
    assert "how it was made" not in found


def test_what_is_nested_stands_under_headings_one_adapter_after_the_other(clip, tmp_path):
    [path] = clip.save(tmp_path / "cat.mp4")
    labels = [label for label, _ in rows(path)]
    one, two, model = (labels.index(label) for label in ("adapter 1 of 2", "adapter 2 of 2", "model"))
    assert one < two < model
    assert rows(path)[one + 1 : one + 4] == [("  name", "style"), ("  scales", "[0.5]"), ("  strength", "0.8")]
    assert ("  name", "CogVideoX-2B") in rows(path)[model:]
    assert "negative prompt" not in labels


def test_a_program_gets_the_metadata_as_they_are_and_the_file_beside_them(clip, tmp_path):
    [path] = clip.save(tmp_path / "cat.mp4")
    answer = json.loads(json.dumps(recipes.inspect_video(path).as_json()))
    file = answer.pop("file")
    assert answer == METADATA
    assert {name: file[name] for name in ("format", "codec", "pixel_format", "num_pictures", "height", "width", "fps")} == {
        "format": "mp4",
        "codec": "h264",
        "pixel_format": "yuv420p",
        "num_pictures": 9,
        "height": 48,
        "width": 64,
        "fps": 8,
    }


def test_a_video_of_another_program_says_what_it_is_and_that_it_says_no_more(tmp_path):
    write_film(tmp_path / "film.mkv", 12, fps=24)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "photo.jpg")
    film, photo = told(tmp_path / "film.mkv"), told(tmp_path / "photo.jpg")
    assert film["pictures"] == "12 of 32 x 48 at 24 fps, 0.5 s"
    assert photo["file"] == "jpeg, rgb"
    for found in (film, photo):
        assert found["how it was made"].startswith("unknown: the file holds nothing about it.")
    assert set(recipes.inspect_video(tmp_path / "photo.jpg").as_json()) == {"file"}


def test_a_grid_shows_its_axes_and_what_its_cells_share(clip, tmp_path):
    from dataclasses import replace

    clips = [replace(clip, metadata={**METADATA, "seed": seed}) for seed in (1, 2)]
    [path] = grid_video(clips, rows=(), columns=Axis(name="seed", values=(1, 2))).save(tmp_path / "grid.mp4")
    found = told(path)
    assert found["cells"] == "2, which --json shows one by one"
    assert found["  columns"] == "seed=1,2"
    assert found["  prompt"] == "a red disc\\x1b[2J"
    assert "  seed" not in found
    assert recipes.inspect_video(path).as_json()["cells"] == [dict(clip.metadata) for clip in clips]


@pytest.mark.parametrize(
    "metadata",
    [
        {"grid": {"rows": [{"name": 1, "values": 2}]}, "cells": [{}, {"a": [[]]}]},
        {"adapters": [{}, {"x": None}], "\x1b[31mred": "x", "model": {}, "deep": [[[{"a": {}}]]]},
        {"cells": [], "grid": [{"name": "x", "values": [[1], {}]}]},
    ],
)
def test_metadata_of_any_shape_can_be_shown(clip, tmp_path, metadata):
    from dataclasses import replace

    [path] = replace(clip, metadata=metadata).save(tmp_path / "cat.mp4")
    assert all("\x1b" not in label + text for label, text in rows(path))


def test_what_is_no_video_is_refused_by_its_name(tmp_path):
    for suffix in VIDEO_SUFFIXES:
        path = tmp_path / f"text{suffix}"
        assert recipes.is_video(path)
        for content in (b"hello", b""):
            path.write_bytes(content)
            with pytest.raises(FileFormatError, match=rf"text\{suffix}"):
                recipes.inspect_video(path)
    assert not recipes.is_video(tmp_path / "adapter.safetensors")


def test_every_format_that_can_be_read_is_looked_at():
    assert VIDEO_SUFFIXES == READABLE
