"""What a user gives to begin with: any picture, any video, in the size that is wanted, or one clear line."""

from typing import Any

import numpy as np
import pytest
import torch
from films import cut, grey, which, write_film
from PIL import Image

from reelora.data import read_clip
from reelora.errors import ConfigError, DataError, FileFormatError
from reelora.generate.pictures import fit, frames_of, read_frames, read_picture

ORIENTATION = 0x0112


@pytest.fixture
def gradient():
    y, x = np.mgrid[:24, :40]
    return np.stack([6 * x, 10 * y, 255 - 6 * x], axis=2).astype(np.uint8)


# ---- pictures in files


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "gif", "jpg", "avif"])
def test_a_picture_of_any_format_is_a_clip_of_one_frame(tmp_path, gradient, suffix):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}, "avif": {"quality": 95}}.get(suffix, {})
    Image.fromarray(gradient).save(tmp_path / f"a.{suffix}", **options)
    frames = read_picture(tmp_path / f"a.{suffix}")
    assert (tuple(frames.shape), frames.dtype) == ((1, 24, 40, 3), torch.uint8)
    tolerance = {"jpg": 12, "avif": 12, "gif": 40}.get(suffix, 0)
    assert np.abs(frames[0].numpy().astype(int) - gradient).max() <= tolerance
    assert frames.is_contiguous()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was_held(tmp_path, gradient, orientation):
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](gradient)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png")[0], gradient)


def test_what_is_transparent_lies_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    image.convert("LA").save(tmp_path / "grey.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_picture(tmp_path / "a.png")[0, 0].tolist() == [[200, 0, 0], [255, 255, 255], [127, 127, 127]]
    assert read_picture(tmp_path / "grey.png")[0, 0, 1].tolist() == [255, 255, 255]
    assert read_picture(tmp_path / "palette.png")[0, 0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_of_grey_become_eight(tmp_path, suffix):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    assert read_picture(tmp_path / f"a.{suffix}")[0, 0].tolist() == [[value] * 3 for value in (0, 1, 128, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_any_mode_becomes_rgb(tmp_path, gradient, mode):
    image = Image.fromarray(gradient).convert(mode)
    image.save(tmp_path / "a.tiff")
    assert np.array_equal(read_picture(tmp_path / "a.tiff")[0], np.asarray(image.convert("RGB")))


def test_numbers_without_a_scale_are_refused(tmp_path):
    Image.fromarray(np.array([[0.25, 3.5]], np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float\.tiff: holds numbers from 0\.25 to 3\.5, and nothing says which .* is white"):
        read_picture(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"The image holds numbers from -1 to 7"):
        frames_of(Image.fromarray(np.array([[-1, 7]], np.int32)))


def test_of_an_animation_the_first_picture_is_taken(drawn, tmp_path):
    [path] = drawn.save(tmp_path / "cat.gif")
    assert torch.equal(read_picture(path), drawn.frames[:1])


def test_what_is_no_picture_is_one_line_that_names_it(tmp_path, gradient):
    write_film(tmp_path / "film.mp4")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name in ("film.mp4", "text.png", "empty.png"):
        with pytest.raises(FileFormatError, match=rf"{name}: is no picture that can be read .*Convert it to png"):
            read_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        read_picture(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff"])
def test_a_picture_that_is_cut_off_is_never_half_used(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    for share in (0.05, 0.3, 0.7, 0.9):
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FileFormatError, match=rf"cut\.{suffix}: is (no picture|a picture that is cut off)"):
            read_picture(tmp_path / f"cut.{suffix}")


# ---- videos in files


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_a_video_is_read_at_the_rate_of_the_model_as_training_reads_it(tmp_path, suffix):
    path = write_film(tmp_path / f"film{suffix}", 24, fps=24)
    frames = read_frames(path, count=8, fps=8)
    assert which(frames) == list(range(0, 24, 3))
    trained, _ = read_clip(path, num_frames=8, height=32, width=48, fps=8)
    assert torch.equal(frames, trained)


def test_a_video_keeps_its_own_size_in_square_pixels(tmp_path):
    def squeeze(stream):
        stream.codec_context.sample_aspect_ratio = 2

    path = write_film(tmp_path / "wide.mp4", 4, setup=squeeze)
    assert tuple(read_frames(path, count=4, fps=8).shape) == (4, 32, 96, 3)


@pytest.mark.parametrize("name", ["cat.mp4", "cat.webm", "cat.gif"])
def test_a_clip_that_was_saved_can_be_begun_with(drawn, tmp_path, name):
    [path] = drawn.save(tmp_path / name)
    frames = read_frames(path, count=17, fps=8)
    error = (frames.float() - drawn.frames.float()).square().mean()
    assert frames.shape == drawn.frames.shape
    assert 10 * torch.log10(255**2 / error.clamp(min=1e-9)) > 30


def test_a_webp_that_moves_is_refused_with_what_to_give(drawn, tmp_path):
    [path] = drawn.save(tmp_path / "cat.webp")
    with pytest.raises(DataError, match=r"cat\.webp: a webp that moves cannot be read .* Give it as \.mp4"):
        read_frames(path, count=17, fps=8)


def test_a_video_that_is_too_short_is_refused_with_what_it_has(tmp_path):
    path = write_film(tmp_path / "short.mp4", 12, fps=24)
    with pytest.raises(DataError, match=r"short\.mp4: is too short: 0\.50 s give 4 frames at 8 fps, and 9 are to be made"):
        read_frames(path, count=9, fps=8)
    assert len(read_frames(path, count=4, fps=8)) == 4


def test_what_is_no_whole_video_is_one_line_that_names_it(tmp_path, gradient):
    (tmp_path / "text.mp4").write_text("hello")
    write_film(tmp_path / "film.mkv", 24, noise=0)
    cut(tmp_path / "film.mkv", 0.5, "cut.mkv")
    Image.fromarray(gradient).save(tmp_path / "still.png")
    with pytest.raises(FileFormatError, match=r"text\.mp4: is not a video"):
        read_frames(tmp_path / "text.mp4", count=4, fps=8)
    with pytest.raises(DataError, match=r"cut\.mkv: is truncated"):
        read_frames(tmp_path / "cut.mkv", count=4, fps=8)
    with pytest.raises(DataError, match=r"still\.png: is too short"):
        read_frames(tmp_path / "still.png", count=4, fps=8)
    with pytest.raises(FileNotFoundError):
        read_frames(tmp_path / "missing.mp4", count=4, fps=8)


# ---- pixels in memory


def test_pixels_in_memory_may_come_in_any_of_the_usual_forms(gradient):
    frame = torch.from_numpy(gradient)[None]
    grey_frame = torch.from_numpy(gradient[..., 0])[None, :, :, None].expand(-1, -1, -1, 3)
    assert torch.equal(frames_of(Image.fromarray(gradient)), frame)
    assert torch.equal(frames_of(gradient), frame)
    assert torch.equal(frames_of(torch.from_numpy(gradient)), frame)
    assert torch.equal(frames_of(np.stack([gradient] * 3)), frame.expand(3, -1, -1, -1))
    assert torch.equal(frames_of(gradient[..., 0]), grey_frame)
    assert torch.equal(frames_of(gradient[..., :1]), grey_frame)
    assert frames_of(gradient[..., :1]).is_contiguous()


def test_a_fourth_channel_is_laid_on_white_in_memory_as_in_a_file(tmp_path, gradient):
    alpha = np.broadcast_to(np.arange(40, dtype=np.uint8) * 6, (24, 40))
    pixels = np.dstack([gradient, alpha])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    difference = frames_of(pixels).int() - read_picture(tmp_path / "a.png").int()
    assert difference.abs().max() <= 1  # PIL rounds in another place


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\): the last axis holds 2 channels, and has to hold 1, 3 or 4\."),
        (np.zeros((3, 8, 8), np.uint8), r"holds 8 channels, .* \(the channels have to be last: move them\)"),
        (np.zeros((9, 3, 8, 8), np.uint8), r"holds 8 channels, .* \(the channels have to be last: move them\)"),
        (np.zeros((8, 8, 3), np.float32), r"float32 \(8, 8, 3\): they have to be uint8, 0 to 255: for floats"),
        (np.zeros((8,), np.uint8), r"they have to be \(h w\), \(h w c\), \(t h w c\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "there is none"),
    ],
)
def test_pixels_that_are_no_picture_are_refused_with_what_they_are(pixels, message):
    with pytest.raises(ConfigError, match=message):
        frames_of(pixels)


# ---- size


def test_a_picture_is_fitted_as_training_fits_a_clip(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (50, 120, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for mode in ("crop", "pad"):
        fitted = fit(read_picture(tmp_path / "a.png"), height=32, width=48, mode=mode)
        trained, _ = read_clip(tmp_path / "a.png", num_frames=1, height=32, width=48, fps=8, fit=mode)
        assert torch.equal(fitted, trained)


def test_crop_covers_and_pad_keeps_all(gradient):
    frames = frames_of(np.full((20, 40, 3), 200, np.uint8))
    assert fit(frames, height=32, width=32, mode="crop").unique().tolist() == [200]
    padded = fit(frames, height=32, width=32, mode="pad")
    assert padded[0, :8].unique().tolist() == padded[0, 24:].unique().tolist() == [0]
    assert padded[0, 8:24].unique().tolist() == [200]
    assert torch.equal(fit(frames_of(gradient), height=24, width=40), frames_of(gradient))


def test_reducing_does_not_alias():
    stripes = frames_of(np.tile(np.array([[0], [255]], np.uint8), (32, 64)))
    small = fit(stripes, height=16, width=16, mode="crop").float()[:, 2:-2]
    assert (small - 127.5).abs().max() < 8


def test_an_unknown_mode_and_an_impossible_size_are_refused(gradient):
    mode: Any = "stretch"
    with pytest.raises(ConfigError, match=r"height and width must be at least 1.*fit 'stretch' is unknown"):
        fit(frames_of(gradient), height=0, width=8, mode=mode)


def test_a_grey_film_is_told_from_its_brightness():
    assert which(frames_of(np.stack([grey(3), grey(7)]))) == [3, 7]
