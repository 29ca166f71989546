"""Clips on disk: they play, they say how they were made, and they appear whole or not at all."""

import io
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from disk import files_of_at_most
from PIL import Image, ImageSequence

from reelora.errors import ConfigError, FileFormatError
from reelora.generate import Clip, check_destination, read_video_metadata, to_mp4_bytes, to_png_bytes

MP4_PSNR = 30.0
"""dB over all pixels of a drawn clip at the default quality; halved chroma at the disc's edge costs most of it."""


NAMES = ["cat.mp4", "cat.webm", "cat.gif", "cat.webp", "cat.png", "cat"]
SUFFIXES = [".mp4", ".webm", ".gif", ".webp", ".png"]


def decoded(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr(one, other):
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 10 * np.log10(255**2 / error)


def noise(t=9, h=32, w=48, fps=8):
    frames = torch.randint(0, 256, (t, h, w, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Clip(frames=frames, fps=fps)


# ---- round trips


@pytest.mark.parametrize("fps", [8, 16, 24000 / 1001])
def test_an_mp4_has_the_frames_size_rate_and_pixels_of_the_clip(drawn, tmp_path, fps):
    [path] = replace(drawn, fps=fps).save(tmp_path / "disc.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.height, stream.width) == (17, 64, 64)
        assert stream.average_rate is not None
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-6)
    assert psnr(decoded(path), drawn.frames) > MP4_PSNR


def test_colours_survive_within_two_levels_because_the_file_says_how_they_are_coded(tmp_path):
    colours = [(220, 20, 20), (20, 200, 40), (30, 60, 220), (240, 220, 30), (255, 255, 255), (0, 0, 0)]
    flat = [np.full((32, 32, 3), colour, np.uint8) for colour in colours]
    [path] = Clip(frames=torch.from_numpy(np.stack(flat)), fps=8).save(tmp_path / "flat.mp4", crf=1)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
    assert np.abs(decoded(path).astype(int) - np.stack(flat)).max() <= 2


def test_an_mp4_is_h264_in_yuv420p_with_its_index_in_front(drawn):
    content = to_mp4_bytes(drawn.frames, fps=8)
    with av.open(io.BytesIO(content)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
    assert content.index(b"moov") < content.index(b"mdat")


def test_pngs_are_lossless_and_numbered(tmp_path):
    clip = noise()
    for name in ("cat.png", "dog"):
        paths = clip.save(tmp_path / name)
        assert [path.name for path in paths] == [f"{name[:3]}_{index:04d}.png" for index in range(9)]
        assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in paths]), clip.frames)


@pytest.mark.parametrize("fps", [8, 16, 30])
def test_a_gif_loops_and_keeps_its_colours_and_its_length(drawn, tmp_path, fps):
    [path] = replace(drawn, fps=fps).save(tmp_path / "disc.gif")
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        pages = [(np.asarray(page.convert("RGB")), page.info["duration"]) for page in ImageSequence.Iterator(image)]
    assert np.array_equal(np.stack([frame for frame, _ in pages]), drawn.frames)  # it has fewer than 256 colours
    assert sum(milliseconds for _, milliseconds in pages) == pytest.approx(1000 * 17 / fps, abs=5)


def test_a_gif_of_a_still_clip_lasts_as_long_as_the_clip(tmp_path):
    [path] = Clip(frames=torch.zeros(17, 16, 16, 3, dtype=torch.uint8), fps=8).save(tmp_path / "still.gif")
    with Image.open(path) as image:
        durations = [page.info["duration"] for page in ImageSequence.Iterator(image)]
    assert sum(durations) == pytest.approx(1000 * 17 / 8, abs=5)


# ---- metadata


@pytest.mark.parametrize("name", NAMES)
def test_metadata_come_back_from_every_format(drawn, tmp_path, name):
    metadata = {
        "prompt": 'ein Kätzchen, 猫, "quoted"; \\ # =\nnew line, lone surrogate \udc80 ' + "and on " * 200,
        "seed": 2**62,
        "guidance": 6.1,
        "adapters": [{"name": "ghibli", "content_hash": "ab" * 32, "strength": 0.8}],
    }
    paths = replace(drawn, metadata=metadata).save(tmp_path / name)
    assert read_video_metadata(tmp_path / name) == metadata
    assert all(read_video_metadata(path) == metadata for path in paths)


def test_an_mp4_carries_its_metadata_in_the_comment_that_every_player_shows(drawn, tmp_path):
    [path] = drawn.save(tmp_path / "disc.mp4")
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["comment"]) == drawn.metadata


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_clip_gives_the_same_bytes(drawn, tmp_path, suffix):
    first = drawn.save(tmp_path / f"first{suffix}")
    again = drawn.save(tmp_path / f"again{suffix}")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_a_file_of_another_program_has_no_metadata_of_ours(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.gif").write_text("no gif")
    (tmp_path / "text.webm").write_text("no video")
    for name in ("plain.webp", "plain.jpg", "plain.gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "empty.png").write_bytes(to_png_bytes(np.zeros((8, 8, 3), np.uint8), metadata={}))
    for name in ("plain.png", "plain.webp", "plain.jpg", "plain.gif", "text.mp4", "text.webm", "text.gif"):
        with pytest.raises(FileFormatError, match=name):
            read_video_metadata(tmp_path / name)
    assert read_video_metadata(tmp_path / "empty.png") == {}


@pytest.mark.parametrize("name", [name.replace("cat", "none") for name in NAMES])
def test_metadata_of_a_missing_file_are_an_oserror(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        read_video_metadata(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_a_clear_error_or_still_tells_its_metadata(drawn, tmp_path, suffix):
    path = drawn.save(tmp_path / f"disc{suffix}")[0]
    whole = path.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        try:
            assert read_video_metadata(path) == drawn.metadata
        except (FileFormatError, OSError):
            continue


# ---- refusals


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_exists_is_never_overwritten_unasked(drawn, tmp_path, name):
    paths = drawn.save(tmp_path / name)
    before = [path.read_bytes() for path in paths]
    other = replace(drawn, metadata={"seed": 8})
    with pytest.raises(ConfigError, match=rf"{paths[0].name}.* exists already.*overwrite=True"):
        other.save(tmp_path / name)
    assert [path.read_bytes() for path in paths] == before
    other.save(tmp_path / name, overwrite=True)
    assert read_video_metadata(tmp_path / name) == {"seed": 8}


def test_a_shorter_set_of_frames_leaves_none_of_the_longer_one(drawn, tmp_path):
    drawn.save(tmp_path / "cat.png")
    (tmp_path / "cat_notes.png").write_bytes(b"not a frame")
    replace(drawn, frames=drawn.frames[:9]).save(tmp_path / "cat.png", overwrite=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [*(f"cat_{index:04d}.png" for index in range(9)), "cat_notes.png"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("occupied", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, name, occupied):
    clip = noise(h=64, w=64)
    before = {path: path.read_bytes() for path in clip.save(tmp_path / name)} if occupied else {}
    with files_of_at_most(4096), pytest.raises(OSError, match="cat"):
        replace(clip, fps=16).save(tmp_path / name, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_missing_folder_is_named_before_any_work(drawn, tmp_path):
    for path in (tmp_path / "nowhere" / "cat.mp4", tmp_path / "nowhere" / "cat"):
        with pytest.raises(FileNotFoundError, match=r"make it first.*nowhere"):
            drawn.save(path)
        with pytest.raises(FileNotFoundError, match=r"make it first.*nowhere"):
            check_destination(path)


@pytest.mark.parametrize("name", ["cat.mp4", "cat.gif", "cat.png", "cat"])
def test_a_folder_that_takes_no_file_is_found_out_before_any_work(drawn, tmp_path, name):
    with pytest.raises(OSError, match=rf"takes no file .*choose another.*/proc/self/{name}"):
        check_destination(Path("/proc/self") / name)
    with files_of_at_most(0), pytest.raises(OSError, match=rf"takes no file .*or make room.*{name}"):
        check_destination(tmp_path / name)
    assert not list(tmp_path.iterdir())
    check_destination(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_names_the_nearest(drawn, tmp_path):
    with pytest.raises(ConfigError, match=r"\.mp is no format.*did you mean '\.mp4'"):
        drawn.save(tmp_path / "cat.mp")
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        drawn.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("crf", [0, 52])
def test_odd_sizes_and_impossible_qualities_of_an_mp4_are_refused_together(tmp_path, crf):
    with pytest.raises(ConfigError, match=rf"31x48.*even sizes.*crf is {crf}"):
        noise(h=31).save(tmp_path / "odd.mp4", crf=crf)
    assert not list(tmp_path.iterdir())
    assert noise(h=31).save(tmp_path / "odd.gif")


@pytest.mark.parametrize("shape", [(8, 8, 3), (0, 8, 8, 3), (2, 8, 8, 4)])
def test_what_is_no_clip_is_refused_at_birth(shape):
    with pytest.raises(ConfigError, match=r"uint8 \(t, h, w, 3\)"):
        Clip(frames=torch.zeros(shape, dtype=torch.uint8), fps=8)
    with pytest.raises(ConfigError, match=r"torch\.float32"):
        Clip(frames=torch.zeros(1, 8, 8, 3), fps=8)
    with pytest.raises(ConfigError, match="fps is nan"):
        Clip(frames=torch.zeros(1, 8, 8, 3, dtype=torch.uint8), fps=float("nan"))
