"""A look at every clip before the first is encoded."""

from dataclasses import replace

import pytest
from films import cut, write_film, write_sound

from reelora.data import ClipSettings, list_clips, survey
from reelora.errors import DataError

SETTINGS = ClipSettings(num_frames=9, height=16, width=16, fps=8)


def test_every_clip_is_either_reported_or_refused_and_all_refusals_come_at_once(data_folder):
    write_film(data_folder / "short.mp4", 3)
    write_sound(data_folder / "sound.mp4")
    cut(write_film(data_folder / "cut.mp4", 20, noise=1), 0.5)
    (data_folder / "letter.mp4").write_text("hello\n" * 99)
    for name in ["short", "sound", "cut", "letter"]:
        (data_folder / f"{name}.txt").write_text(name)
    clips = list_clips(data_folder)
    result = survey(clips, SETTINGS)
    assert [report.name for report in result.reports] == ["0.mp4", "1.mp4", "2.mp4"]
    assert [refusal.name for refusal in result.refusals] == ["cut.mp4", "letter.mp4", "short.mp4", "sound.mp4"]
    with pytest.raises(DataError, match="4 of 7 clips cannot be used") as error:
        result.check()
    lines = str(error.value).splitlines()[1:]
    for line, part in zip(lines, ["truncated", "is not a video", "too short", "sound only"], strict=True):
        assert part in line
        assert str(data_folder) in line


def test_a_clip_that_vanished_is_a_refusal_too(data_folder):
    clips = [replace(clip, path=clip.path.with_name("gone.mp4")) for clip in list_clips(data_folder)[:1]]
    assert "gone.mp4" in survey(clips, SETTINGS).refusals[0].reason


def test_progress_counts_every_clip(data_folder):
    seen = []
    survey(list_clips(data_folder), SETTINGS, on_progress=lambda *call: seen.append(call)).check()
    assert seen == [(1, 3, "0.mp4"), (2, 3, "1.mp4"), (3, 3, "2.mp4")]
