"""One video as the model will see it."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from films import cut, grey, which, write_film, write_sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reelora.data import ClipSettings, probe_video, read_as, read_clip
from reelora.errors import ConfigError, DataError, FileFormatError

SMALL: dict[str, Any] = {"height": 16, "width": 16}


def kinds(report) -> list[str]:
    return [change.kind for change in report.changes]


# Time.


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".ts", ".mov"])
def test_at_its_own_rate_every_frame_comes_once_whatever_the_container_rounds(tmp_path, suffix):
    film = write_film(tmp_path / f"film{suffix}", 24, fps=24)
    frames, report = read_clip(film, num_frames=24, fps=24, height=32, width=48)
    assert which(frames) == list(range(24))
    assert report.changes == ()
    assert (report.source_frames, report.source_height, report.source_width) == (24, 32, 48)


@pytest.mark.parametrize("source_fps", [12, 15, 23.976, 24, 25, 30, 60])
@pytest.mark.parametrize("fps", [8, 16])
def test_frame_k_is_what_is_on_screen_k_over_fps_seconds_after_the_start(tmp_path, source_fps, fps):
    film = write_film(tmp_path / "film.mkv", 28, fps=source_fps)
    count = int(28 / source_fps * fps)
    frames, report = read_clip(film, num_frames=count, fps=fps, **SMALL)
    # The slack of a third of a frame that absorbs rounded timestamps is part of the rule.
    exact = [Fraction(k * 1000, fps * 1000) * Fraction(source_fps).limit_denominator(1001) for k in range(count)]
    slack = Fraction(1, 3) * min(1, Fraction(source_fps).limit_denominator(1001) / fps)
    assert which(frames) == [int(place + slack) for place in exact]
    assert "resampled" in kinds(report)


def test_a_variable_frame_rate_keeps_its_timing(tmp_path):
    film = write_film(tmp_path / "film.mp4", 5, times_ms=[0, 100, 500, 1000, 1500])
    frames, report = read_clip(film, num_frames=7, fps=4, **SMALL)
    assert which(frames) == [0, 1, 2, 2, 3, 3, 4]
    assert "variable" in str(report)


@given(gaps=st.lists(st.integers(20, 400), min_size=3, max_size=20), fps=st.sampled_from([4, 8, 10]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_frame_is_early_or_late_by_more_than_the_slack(tmp_path, gaps, fps):
    times = [sum(gaps[:index]) for index in range(len(gaps))]
    film = write_film(tmp_path / "film.mkv", len(times), times_ms=times)
    frames, report = read_clip(film, num_frames=64, fps=fps, min_share=0, **SMALL)
    for k, index in enumerate(which(frames)[: report.num_own_frames]):
        moment, slack = 1000 * k / fps, 1000 / fps / 3 + 1
        assert times[index] <= moment + slack
        assert index + 1 == len(times) or times[index + 1] >= moment


@pytest.mark.parametrize("num_source", [60, 97, 200])
def test_a_clip_that_lasts_as_long_as_asked_is_covered_from_its_first_frame_to_its_last(tmp_path, num_source):
    # CogVideo takes every (n // F)-th frame: of 97 frames it sees the first 51 % (reference D12).
    film = write_film(
        tmp_path / "film.mp4", [grey(min(index * 24 // num_source, 24)) for index in range(num_source)], fps=num_source / 6
    )
    frames, report = read_clip(film, num_frames=48, fps=8, **SMALL)
    assert which(frames)[0] == 0
    assert which(frames)[-1] == 23
    assert not {"trimmed", "padded"} & set(kinds(report))


def test_a_long_clip_is_trimmed_to_its_start_and_says_so(tmp_path):
    frames, report = read_clip(write_film(tmp_path / "film.mp4", 20), num_frames=9, fps=8, **SMALL)
    assert which(frames) == list(range(9))
    assert "trimmed: the first 9 of 20 frames at 8 fps are used" in str(report)


def test_a_short_clip_repeats_its_last_frame_and_says_so(tmp_path):
    frames, report = read_clip(write_film(tmp_path / "film.mp4", 6), num_frames=9, fps=8, **SMALL)
    assert which(frames) == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert "padded: 6 of 9 frames at 8 fps; the last is repeated 3 times" in str(report)
    assert report.num_own_frames == 6


def test_a_clip_below_the_least_share_is_refused_and_one_at_it_is_not(tmp_path):
    film = write_film(tmp_path / "film.mp4", 6)
    read_clip(film, num_frames=12, fps=8, **SMALL)
    with pytest.raises(
        DataError, match=r"film\.mp4: is too short: 0\.75 s give 6 frames at 8 fps; 13 are wanted and at least 7"
    ):
        read_clip(film, num_frames=13, fps=8, **SMALL)
    read_clip(film, num_frames=13, fps=8, min_share=0.4, **SMALL)


@pytest.mark.parametrize(
    ("padding", "shown"),
    [
        ("last", [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5]),
        ("loop", [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),
        ("bounce", [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 1]),
    ],
)
def test_a_short_clip_is_padded_as_asked(tmp_path, padding, shown):
    frames, report = read_clip(write_film(tmp_path / "film.mp4", 6), num_frames=12, fps=8, padding=padding, **SMALL)
    assert which(frames) == shown
    assert kinds(report)[0] == "padded"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".ts"])
@pytest.mark.parametrize("first", [1, 47, 80, 117])
def test_a_piece_of_a_long_film_is_the_same_as_when_it_is_read_from_its_start(tmp_path, suffix, first):
    # Pieces that begin late are sought by key pictures, where a film that is read from its start is decoded whole.
    pictures = [grey(index * 7) for index in range(125)]
    film = write_film(tmp_path / f"film{suffix}", pictures, fps=8)
    whole, _ = read_clip(film, num_frames=125, height=16, width=16, fps=8)
    piece, _ = read_as(film, ClipSettings(num_frames=8, height=16, width=16, fps=8), first=first)
    assert which(piece) == which(whole[first : first + 8])
    assert torch.equal(piece, whole[first : first + 8])


# Space.


def disc(height: int, width: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    inside = (rows + 0.5 - height / 2) ** 2 + (columns + 0.5 - width / 2) ** 2 < radius**2
    return np.repeat(np.where(inside, 235, 20).astype(np.uint8)[..., None], 3, axis=2)


def extent(frame: torch.Tensor) -> tuple[int, int]:
    bright = frame.float().mean(-1) > 128
    return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize(("height", "width"), [(48, 120), (120, 48), (64, 64)])
def test_a_circle_stays_a_circle(tmp_path, height, width):
    film = write_film(tmp_path / "film.mp4", [disc(height, width, 20)] * 3)
    frames, _ = read_clip(film, num_frames=3, fps=8, height=64, width=64)
    tall, wide = extent(frames[0])
    assert abs(tall - wide) <= 1
    assert abs(tall - 40 * 64 / min(height, width)) <= 2


def stripes_across(height: int, width: int) -> np.ndarray:
    """Red, green and blue from left to right, or from top to bottom of a picture that is higher than wide."""
    picture = np.zeros((height, width, 3), np.uint8)
    axis = 1 if width > height else 0
    for colour, part in enumerate(np.array_split(np.arange((height, width)[axis]), 3)):
        picture[(slice(None), part) if axis else part] = 20
        picture[(slice(None), part, colour) if axis else (part, slice(None), colour)] = 200
    return picture


@pytest.mark.parametrize(("height", "width"), [(32, 96), (96, 32)])
@pytest.mark.parametrize(
    ("fit", "seen"),
    [("crop_start", "red"), ("crop", "green"), ("crop_end", "blue")],
)
def test_the_part_that_is_kept_is_the_one_that_was_asked_for(tmp_path, height, width, fit, seen):
    film = write_film(tmp_path / "film.mp4", [stripes_across(height, width)] * 2)
    frames, report = read_clip(film, num_frames=2, fps=8, fit=fit, height=32, width=32)
    assert {corner(frames[0], row, column) for row in (4, 28) for column in (4, 28)} == {seen}
    assert kinds(report) == ["cropped"]


@pytest.mark.parametrize(("fit", "edges"), [("pad", (0, 0)), ("pad_edge", (200, 60))])
def test_a_padded_picture_is_whole_and_has_a_border_of_black_or_of_its_edge(tmp_path, fit, edges):
    top, bottom = np.full((16, 64, 3), 200, np.uint8), np.full((16, 64, 3), 60, np.uint8)
    film = write_film(tmp_path / "film.mp4", [np.concatenate([top, bottom])] * 2)
    frames, report = read_clip(film, num_frames=2, fps=8, fit=fit, height=64, width=64)
    rows = frames[0].float().mean((1, 2))
    expected = torch.tensor([edges[0]] * 16 + [200] * 16 + [60] * 16 + [edges[1]] * 16)
    assert (rows - expected).abs().max() <= 4
    assert kinds(report) == ["bordered"]
    assert "around 32 x 64, which fill 50% of 64 x 64" in str(report)


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    squeezed = disc(64, 128, 20)[:, ::2]

    def wide_pixels(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    film = write_film(tmp_path / "film.mp4", [squeezed] * 3, setup=wide_pixels)
    frames, report = read_clip(film, num_frames=3, fps=8, height=64, width=64)
    tall, wide = extent(frames[0])
    assert abs(tall - wide) <= 1
    assert "cropped: to 64 x 64 at the centre, 50% of the picture is kept" in str(report)


def quadrants() -> np.ndarray:
    """Red top left, green top right, blue bottom left, grey bottom right."""
    picture = np.full((32, 48, 3), 128, np.uint8)
    picture[:16, :24], picture[:16, 24:], picture[16:, :24] = (200, 20, 20), (20, 200, 20), (20, 20, 200)
    return picture


def corner(frame: torch.Tensor, row: int, column: int) -> str:
    pixel = frame[row, column].int().tolist()
    return "grey" if max(pixel) - min(pixel) < 60 else ("red", "green", "blue")[int(np.argmax(pixel))]


def turn_right(film: Path) -> None:
    """Overwrite the display matrix (ISO 14496-12, tkhd): x' = -y, y' = x, as a telephone held upright writes it."""
    data = bytearray(film.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    identity = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000]
    assert data[at : at + 36] == b"".join(value.to_bytes(4, "big") for value in identity)
    matrix = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    film.write_bytes(data)


def test_a_film_is_turned_upright_as_its_display_matrix_asks(tmp_path):
    film = write_film(tmp_path / "film.mp4", [quadrants()] * 3)
    turn_right(film)
    frames, report = read_clip(film, num_frames=3, fps=8, height=48, width=32)
    seen = [corner(frames[0], row, column) for row, column in [(6, 6), (6, 26), (42, 6), (42, 26)]]
    assert seen == ["blue", "red", "grey", "green"]
    assert "turned: by 270 degrees counter-clockwise" in str(report)
    assert probe_video(film).upright == (48, 32)


def test_detail_finer_than_the_result_becomes_its_mean_and_not_a_pattern(tmp_path):
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    film = write_film(tmp_path / "film.mp4", [stripes] * 3)
    frames, report = read_clip(film, num_frames=3, fps=8, height=24, width=24)
    inner = frames[0, 2:-2, 2:-2].float()
    assert inner.std() < 4
    assert 115 < inner.mean() < 140
    assert "resized: reduced from 128 x 128 to 24 x 24" in str(report)


@given(height=st.integers(1, 70), width=st.integers(1, 70), source=st.sampled_from([(32, 48), (48, 32), (16, 128)]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_size_can_be_had_from_every_size(tmp_path, height, width, source):
    film = tmp_path / f"{source}.mp4"
    if not film.exists():
        write_film(film, [grey(5, height=source[0], width=source[1])] * 2)
    frames, _ = read_clip(film, num_frames=2, fps=8, height=height, width=width)
    assert frames.shape == (2, height, width, 3)
    assert frames.dtype == torch.uint8
    assert which(frames) == [5, 5]


@pytest.mark.parametrize(("name", "code"), [("ITU709", 1), ("ITU601", 6)])
def test_colours_are_read_by_the_matrix_that_the_file_names(tmp_path, name, code):
    colour = np.broadcast_to(np.array([200, 40, 90], np.uint8), (32, 32, 3)).copy()
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.colorspace = code
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(colour, format="rgb24").reformat(format="yuv420p", dst_colorspace=name)
            frame.colorspace = code
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, _ = read_clip(tmp_path / "film.mp4", num_frames=2, fps=8, height=32, width=32)
    assert (frames[0].float() - torch.tensor([200.0, 40.0, 90.0])).abs().max() <= 3


@pytest.mark.parametrize(("suffix", "codec", "pixels"), [(".png", "png", "rgb24"), (".jpg", "mjpeg", "yuvj420p")])
def test_a_picture_is_a_clip_of_one_frame(tmp_path, suffix, codec, pixels):
    path = tmp_path / f"picture{suffix}"
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = 32, 48, pixels, Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(grey(7), format="rgb24").reformat(format=pixels)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    frames, _ = read_clip(path, num_frames=1, fps=8, height=32, width=32)
    assert frames.shape == (1, 32, 32, 3)
    assert which(frames) == [7]


# What cannot be read.


@pytest.mark.parametrize(
    ("suffix", "faststart", "message"),
    [
        (".mp4", True, r"is truncated: holds \d+ of 24 frames; \d+ frames could be decoded"),
        (".mp4", False, "begins as MP4 but is truncated or damaged: its index cannot be read, 0 frames decoded"),
        (".mkv", False, r"is truncated: ends at 0\.\d+ of 1\.00 seconds; \d+ frames could be decoded"),
        (".avi", False, r"is truncated: holds \d+ of 24 frames; \d+ frames could be decoded"),
    ],
)
def test_a_truncated_film_is_refused_even_where_its_start_would_do(tmp_path, capfd, suffix, faststart, message):
    film = cut(write_film(tmp_path / f"film{suffix}", 24, fps=24, noise=0, faststart=faststart), 0.6)
    with pytest.raises((DataError, FileFormatError), match=message) as error:
        read_clip(film, num_frames=2, fps=8, **SMALL)
    assert str(film) in str(error.value)
    assert capfd.readouterr() == ("", ""), "libav writes to the terminal"


def test_sound_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="has sound only"):
        read_clip(write_sound(tmp_path / "film.mp4"), num_frames=2, fps=8, **SMALL)


def test_a_film_without_a_frame_is_refused(tmp_path):
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(DataError, match="without a single frame"):
        read_clip(path, num_frames=2, fps=8, **SMALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty .0 bytes."),
        (b"this is a letter, not a film\n" * 99, "is not a video"),
        (bytes(range(256)) * 40, "is not a video"),
        (b"GIF89a", "begins as GIF but is truncated"),
    ],
)
def test_what_is_no_video_is_refused_by_its_bytes(tmp_path, content, message):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_clip(path, num_frames=2, fps=8, **SMALL)


@pytest.mark.parametrize(
    "head", ["#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_playlist_under_the_name_of_a_video_cannot_open_another_file(tmp_path, head):
    other = write_film(tmp_path / "other.ts", 9)
    path = tmp_path / "film.mp4"
    path.write_text(head.format(other.name))
    with pytest.raises(FileFormatError, match="is not a video"):
        read_clip(path, num_frames=2, fps=8, **SMALL)


def test_a_missing_file_and_a_folder_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "nowhere.mp4", num_frames=2, fps=8, **SMALL)
    with pytest.raises(IsADirectoryError):
        read_clip(tmp_path, num_frames=2, fps=8, **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": 0},
        {"height": 0},
        {"fps": 0},
        {"fps": float("nan")},
        {"min_share": 1.5},
        {"fit": "squash"},
        {"padding": "none"},
        {"fps": 1e9},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ClipSettings(**{"num_frames": 9, "height": 16, "width": 16, "fps": 8, **wrong})
