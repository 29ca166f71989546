"""What becomes of every clip, before the first is encoded."""

from dataclasses import replace

import pytest
import torch
from films import cut, write_film, write_sound

from reelora.data import CacheSettings, ClipChoice, ClipSettings, list_clips, plan_clips, read_as, read_first_frame
from reelora.errors import DataError

SETTINGS = CacheSettings(
    clip=ClipSettings(num_frames=9, height=16, width=16, fps=8), vae_fingerprint="", text_fingerprint="", num_text_tokens=6
)


@pytest.fixture
def plan(data_folder, tmp_path):
    return lambda clips=None: plan_clips(clips or list_clips(data_folder), SETTINGS, tmp_path / "cache")


def test_every_clip_is_either_planned_or_refused_and_all_refusals_come_at_once(data_folder, plan):
    write_film(data_folder / "short.mp4", 3)
    write_sound(data_folder / "sound.mp4")
    cut(write_film(data_folder / "cut.mp4", 20, noise=1), 0.5)
    (data_folder / "letter.mp4").write_text("hello\n" * 99)
    (data_folder / "nothing.mp4").touch()
    for name in ["short", "sound", "cut", "letter", "nothing"]:
        (data_folder / f"{name}.txt").write_text(name)
    result = plan()
    assert [clip.name for clip in result.clips] == ["0.mp4", "1.mp4", "2.mp4"]
    assert [refusal.name for refusal in result.refusals] == ["cut.mp4", "letter.mp4", "nothing.mp4", "short.mp4", "sound.mp4"]
    with pytest.raises(DataError, match="5 of 8 clips cannot be used") as error:
        result.check()
    lines = str(error.value).splitlines()[1:]
    for line, part in zip(lines, ["truncated", "is not a video", "is empty", "too short", "sound only"], strict=True):
        assert part in line
        assert str(data_folder) in line


def test_the_first_frame_of_a_piece_is_that_of_its_clip(data_folder, tmp_path):
    write_film(data_folder / "0.mp4", 29)
    settings = replace(SETTINGS, choice=ClipChoice(kind="chunks"))
    for clip in plan_clips(list_clips(data_folder)[:1], settings, tmp_path / "cache").clips:
        frames, _ = read_as(clip.source.path, clip.piece.settings, first=clip.piece.first)
        assert torch.equal(read_first_frame(clip), frames[:1])


def test_a_report_says_how_much_is_cut_off_above_and_to_the_left(plan):
    report = plan().clips[0].report
    assert (report.source_height, report.source_width) == (32, 48)
    assert (report.crop_top, report.crop_left) == (0, 4)  # 32 x 48 to 16 x 24 to 16 x 16


def test_a_plan_writes_nothing(data_folder, plan, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plan()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_clip_that_vanished_is_a_refusal_too(data_folder, plan):
    clips = [replace(clip, path=clip.path.with_name("gone.mp4")) for clip in list_clips(data_folder)[:1]]
    assert "gone.mp4" in plan(clips).refusals[0].reason


def test_progress_counts_every_clip(data_folder, tmp_path):
    seen = []
    plan_clips(list_clips(data_folder), SETTINGS, tmp_path, on_progress=lambda *call: seen.append(call)).check()
    assert seen == [(1, 3, "0.mp4"), (2, 3, "1.mp4"), (3, 3, "2.mp4")]


def test_timestamps_that_no_camera_makes_are_refused_with_what_to_do(data_folder, plan):
    write_film(data_folder / "0.mp4", 12, fps=30000)
    (refusal,) = plan().refusals
    assert "timestamps are broken. Encode it again at its true rate" in refusal.reason
