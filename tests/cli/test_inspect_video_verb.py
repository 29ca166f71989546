"""``reelora inspect`` on videos and pictures."""

import json

import torch
from films import write_film

from reelora.generate import Clip

METADATA = {"prompt": "a cat", "seed": 3, "adapters": [{"name": "style", "strength": 0.5}]}


def test_a_video_is_shown_as_rows_or_as_json(reelora, tmp_path):
    clip = Clip(frames=torch.zeros(3, 16, 16, 3, dtype=torch.uint8), fps=8, metadata=METADATA)
    for name in ("cat.mp4", "cat.webm", "cat.webp", "cat.png"):
        clip.save(tmp_path / name)
        shown = reelora("inspect", tmp_path / name).out.splitlines()
        assert [line.split(maxsplit=1) for line in shown if line.startswith(("prompt", "seed"))] == [
            ["prompt", "a cat"],
            ["seed", "3"],
        ]
        answer = json.loads(reelora("inspect", tmp_path / name, "--json").out)
        assert {key: value for key, value in answer.items() if key != "file"} == METADATA


def test_a_video_of_another_program_is_shown_without_a_story(reelora, tmp_path):
    path = write_film(tmp_path / "film.mp4")
    result = reelora("inspect", path)
    assert result.code == 0
    assert "unknown: the file holds nothing about it" in result.out
    assert set(json.loads(reelora("inspect", path, "--json").out)) == {"file"}


def test_options_that_are_for_adapters_are_refused(reelora, tmp_path):
    result = reelora("inspect", tmp_path / "cat.mp4", "--deep", "--html", tmp_path / "page.html")
    assert (result.code, result.err) == (
        2,
        "reelora: --deep, --html would have no say of a video or picture: leave them out.\n",
    )


def test_what_is_no_video_is_a_users_mistake(reelora, tmp_path):
    (tmp_path / "text.webm").write_text("hello")
    for name in ("text.webm", "missing.mp4"):
        result = reelora("inspect", tmp_path / name)
        assert result.code == 2
        assert name in result.err
        assert "Traceback" not in result.err
