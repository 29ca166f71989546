"""``reelora precompute``: what every clip becomes and why, and a picture of it."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from films import cut, grey, write_film
from PIL import Image

from reelora.data import CachedClips


@pytest.fixture
def mixed(clips):
    """Three landscape films, an upright one with two captions, a short one, and a caption without a video."""
    write_film(clips / "tall.mp4", [grey(index, height=96, width=64) for index in range(20)])
    (clips / "tall.txt").write_text("a tall film\nanother word for it")
    write_film(clips / "brief.mp4", 3)
    (clips / "brief.txt").write_text("a brief film")
    (clips / "alone.txt").write_text("no video")
    return clips


SETTINGS = [
    *("--set", "data.buckets=auto"),
    *("--set", "data.caption_lines=apart"),
    *("--set", "data.trigger=zzq"),
    *("--set", 'data.repeats={"tall*" = 3}'),
]


def test_a_dry_run_says_what_every_clip_becomes_and_why_and_writes_nothing(reelora, mixed, files):
    before = files()
    result = reelora("precompute", "--data", mixed, "--dry-run", *SETTINGS)
    assert result.code == 0, result.err
    assert files() == before
    lines = result.out.splitlines()
    assert lines[0].startswith("0.mp4 -> 17x48x64: resized enlarged from 32 x 48 to 48 x 72; cropped to 48 x 64 at the centre")
    assert lines[3].startswith("tall.mp4 -> 17x64x48: trimmed the first 17 of 20 frames at 8 fps are used; resized reduced")
    assert "(2 captions, seen 3 times an epoch, to encode)" in lines[3]
    assert "not used: alone.txt" in lines
    assert any(line.startswith("refused brief.mp4: ") and "at least 5 are needed" in line for line in lines)
    assert lines[-1] == (
        "4 clips in 2 buckets (3 of 17x48x64, 1 of 17x64x48); 1 of 5 videos refused; to encode: 4 clips, 6 captions"
    )


def test_a_dry_run_has_the_same_for_programs(reelora, mixed):
    answer = json.loads(reelora("precompute", "--data", mixed, "--dry-run", "--json", *SETTINGS).out)
    tall = answer["clips"][3]
    assert (tall["bucket"], tall["repeats"], tall["is_cached"]) == ("17x64x48", 3, False)
    assert tall["captions"] == ["zzq a tall film", "zzq another word for it"]
    assert [change["kind"] for change in tall["changes"]] == ["trimmed", "resized", "cropped"]
    assert [refusal["name"] for refusal in answer["refused"]] == ["brief.mp4"]
    assert answer["unused_files"] == ["alone.txt"]
    assert answer["to_encode"] == {"clips": 4, "captions": 6}


def test_what_a_dry_run_promised_is_what_precompute_makes(reelora, mixed):
    settings = [*SETTINGS, "--set", "data.skip_refused=true"]
    promised = json.loads(reelora("precompute", "--data", mixed, "--dry-run", "--json", *settings).out)
    done = json.loads(reelora("precompute", "--data", mixed, "--json", *settings).out)
    assert done["encoded_clips"] == promised["to_encode"]["clips"]
    cached = CachedClips(done["manifest"])
    assert cached.buckets == [clip["bucket"] for clip in promised["clips"]]
    assert cached[0]["latent_mean"].shape == (5, 16, 6, 8)
    assert cached[3]["latent_mean"].shape == (5, 16, 8, 6)
    again = json.loads(reelora("precompute", "--data", mixed, "--dry-run", "--json", *settings).out)
    assert again["to_encode"] == {"clips": 0, "captions": 0}


def test_a_sheet_shows_the_frames_that_the_model_will_see(reelora, mixed, tmp_path):
    cut(write_film(mixed / "cut.mp4", 20, noise=1), 0.5)
    (mixed / "cut.txt").write_text("a film that is cut")
    sheet = tmp_path / "sheet.png"
    result = reelora("precompute", "--data", mixed, "--dry-run", "--sheet", sheet, *SETTINGS)
    assert result.code == 0, result.err
    assert f"Sheet: {sheet}" in result.out
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # The tall film's frames 0, 3, 6, 10, 13 and 16 are plain greys that nothing else on the sheet has in blocks of 64x48.
    for index in (0, 3, 6, 10, 13, 16):
        close = (abs(pixels - (20 + 8 * index)) <= 3).all(-1)
        assert close.sum() >= 60 * 44, index


def test_a_sheet_that_is_no_picture_is_refused_before_any_work(reelora, clips, tmp_path, files):
    before = files()
    result = reelora("precompute", "--data", clips, "--sheet", tmp_path / "sheet.pdf")
    assert result.code == 2
    assert "end its name in .png" in result.err
    assert files() == before


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ('data.buckets=["17x64x64", "16x60x64"]', "9 or 17"),
        ("data.buckets=[]", "name sizes"),
        ('data.buckets=["64x64"]', "data.buckets"),
        ('data.repeats={"nothing*" = 2}', "match no clip: nothing*"),
        ("data.fit=squash", "data.fit"),
        ("data.choice=tail", "data.choice"),
        ("data.fps=1e9", "data.fps"),
        ("data.stride=0", "data.stride"),
    ],
)
def test_impossible_settings_of_data_are_named(reelora, clips, setting, hint):
    result = reelora("precompute", "--data", clips, "--dry-run", "--set", setting)
    assert result.code == 2
    assert hint in result.err
    assert "Traceback" not in result.err


def test_clips_without_captions_may_have_a_default_one(reelora, clips):
    for path in clips.glob("*.txt"):
        path.unlink()
    options = ["--set", "data.default_caption=a zzq"]
    answer = json.loads(reelora("precompute", "--data", clips, "--dry-run", "--json", *options).out)
    assert [clip["captions"] for clip in answer["clips"]] == [["a zzq"]] * 3


@pytest.mark.parametrize(
    "seconds", [2.5, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (1.0, 2.0, 3.0, 3.5, 4.0))]
)
def test_after_a_kill_at_any_moment_the_same_command_goes_on(reelora, clips, files, seconds):
    for index in range(3, 12):
        write_film(clips / f"{index}.mp4", 17, noise=index)
        (clips / f"{index}.txt").write_text(f"film number {index}")
    process = subprocess.Popen([sys.executable, "-m", "reelora", "precompute", "--data", clips], stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.kill()
    process.wait()
    kept = {name: content for name, content in files().items() if "/latents/" in name and "/." not in name}
    answer = json.loads(reelora("precompute", "--data", clips, "--json").out)
    assert answer["encoded_clips"] == 12 - len(kept)
    assert kept.items() <= files().items()
    assert CachedClips(answer["manifest"]).verify() == []
