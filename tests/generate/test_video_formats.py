"""Every format plays in another reader, and is the same file whenever and wherever it is made."""

import hashlib
import io
import json
import os
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from disk import files_of_at_most
from PIL import Image, ImageSequence

from reelora.errors import ConfigError, FileFormatError
from reelora.generate import Clip, check_destination, describe_video, find_video_metadata, read_video_metadata
from reelora.generate.encode import CODECS

VIDEOS = {"h264": ".mp4", "h265": ".mp4", "vp9": ".webm"}
IN_THE_FILE = {"h264": ("h264", "avc1"), "h265": ("hevc", "hvc1"), "vp9": ("vp9", "\0\0\0\0")}
STILLS = ["cat.png", "cat.webp", "cat.jpg", "cat.jpeg", "cat"]

PSNR = 40.0
"""dB of the luma of a drawn texture at each codec's default quality."""
WEBP_PSNR = 32.0
"""dB of all pixels of a drawn disc; webp halves the chroma, as mp4 does."""


def texture(t=9, h=96, w=160, seed=0):
    """Waves that drift to the left: detail everywhere, as a video has, and soft enough to be coded well."""
    y, x = np.mgrid[:h, :w]
    draw = np.random.default_rng(seed)
    waves = [(draw.uniform(0.05, 0.5), draw.uniform(0.05, 0.5), draw.uniform(0, 6)) for _ in range(12)]
    luma = np.stack([sum(np.sin(a * y + b * (x + 2 * index) + c) for a, b, c in waves) for index in range(t)])
    grey = np.clip(128 + 18 * luma, 0, 255).astype(np.uint8)
    return Clip(frames=torch.from_numpy(grey)[..., None].repeat(1, 1, 1, 3), fps=8)


def decoded(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def pages(path):
    with Image.open(path) as image:
        return [(np.asarray(page.convert("RGB")), page.info["duration"]) for page in ImageSequence.Iterator(image)]


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))


@contextmanager
def one_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---- they play


@pytest.mark.parametrize("codec", VIDEOS)
@pytest.mark.parametrize("fps", [8, 16, 24000 / 1001])
def test_a_video_has_the_codec_size_rate_and_frames_that_were_asked_for(codec, fps, tmp_path):
    clip = replace(texture(), fps=fps)
    [path] = clip.save(tmp_path / f"cat{VIDEOS[codec]}", codec=codec)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.codec_tag) == IN_THE_FILE[codec]
        assert (context.pix_fmt, stream.height, stream.width) == ("yuv420p", 96, 160)
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
        assert float(stream.average_rate or 0) == pytest.approx(fps, rel=1e-3)  # webm counts in milliseconds
    assert len(decoded(path)) == 9
    assert psnr(decoded(path), clip.frames) > PSNR


def test_the_codec_of_a_suffix_is_the_one_that_plays_everywhere(tmp_path):
    paths = {suffix: texture().save(tmp_path / f"cat{suffix}")[0] for suffix in (".mp4", ".webm")}
    assert [describe_video(path).codec for path in paths.values()] == ["h264", "vp9"]


@pytest.mark.parametrize("codec", VIDEOS)
def test_less_crf_is_better_and_larger(codec, tmp_path):
    good, poor = (texture().save(tmp_path / f"{crf}{VIDEOS[codec]}", codec=codec, crf=crf)[0] for crf in (8, 40))
    assert good.stat().st_size > 2 * poor.stat().st_size
    assert psnr(decoded(good), texture().frames) > 3 + psnr(decoded(poor), texture().frames)


@pytest.mark.parametrize("codec", VIDEOS)
def test_the_index_comes_before_the_pictures_so_that_browsers_play_at_once(codec, tmp_path):
    [path] = texture().save(tmp_path / f"cat{VIDEOS[codec]}", codec=codec)
    content = path.read_bytes()
    index, pictures = {".mp4": (b"moov", b"mdat"), ".webm": (b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75")}[VIDEOS[codec]]
    assert 0 < content.index(index) < content.index(pictures)  # of webm: Cues, Cluster


@pytest.mark.parametrize("fps", [8, 16, 30, 24000 / 1001])
def test_an_animated_webp_loops_and_keeps_its_pictures_and_its_length(drawn, tmp_path, fps):
    [path] = replace(drawn, fps=fps).save(tmp_path / "disc.webp")
    with Image.open(path) as image:
        assert image.info["loop"] == 0
    assert psnr([picture for picture, _ in pages(path)], drawn.frames) > WEBP_PSNR
    assert sum(milliseconds for _, milliseconds in pages(path)) == pytest.approx(1000 * 17 / fps, abs=0.5)


@pytest.mark.parametrize("name", STILLS)
def test_a_clip_of_one_frame_is_one_file_of_that_very_name(drawn, tmp_path, name):
    still = replace(drawn, frames=drawn.frames[:1])
    [path] = still.save(tmp_path / name)
    assert path.name == (name if "." in name else f"{name}.png")
    with Image.open(path) as image:
        assert (getattr(image, "n_frames", 1), image.size) == (1, (64, 64))
        pixels = np.asarray(image.convert("RGB"))
    assert np.array_equal(pixels, drawn.frames[0]) if path.suffix == ".png" else psnr(pixels, drawn.frames[0]) > WEBP_PSNR
    assert read_video_metadata(tmp_path / name) == drawn.metadata


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_clip_of_one_frame_can_be_a_video(drawn, tmp_path, suffix):
    [path] = replace(drawn, frames=drawn.frames[:1]).save(tmp_path / f"cat{suffix}")
    assert describe_video(path).num_pictures == 1


# ---- they are the same


@pytest.mark.parametrize("codec", VIDEOS)
@pytest.mark.parametrize("size", [(34, 34), (48, 48), (64, 64), (64, 176)])
def test_a_video_depends_neither_on_stray_memory_nor_on_the_number_of_cores(codec, size, tmp_path):
    # With x265's macroblock tree frames of 48x48 crash and those of 64x64 differ every time; x264's differ at 64x64.
    clip = texture(17, *size)
    paths = [clip.save(tmp_path / f"{index}{VIDEOS[codec]}", codec=codec)[0] for index in range(4)]
    with one_core():
        paths += clip.save(tmp_path / f"alone{VIDEOS[codec]}", codec=codec)
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) == 1


@pytest.mark.parametrize("name", STILLS)
def test_the_same_picture_gives_the_same_bytes(drawn, tmp_path, name):
    still = replace(drawn, frames=drawn.frames[:1])
    (tmp_path / "again").mkdir()
    [first], [again] = still.save(tmp_path / name), still.save(tmp_path / "again" / name)
    assert first.read_bytes() == again.read_bytes()


# ---- metadata


@pytest.mark.parametrize(
    "name", ["cat.mp4", "cat.webm", "cat.gif", "cat.webp", "cat.png", "still.jpg", "still.webp", "still.png"]
)
def test_metadata_may_be_longer_than_any_field_of_a_header(drawn, tmp_path, name):
    clip = replace(
        drawn, frames=drawn.frames[: 1 if "still" in name else 2], metadata={"prompt": "Kätzchen 猫 \udc80" * 50_000}
    )
    assert len(json.dumps(clip.metadata)) > 1_000_000
    for path in clip.save(tmp_path / name):
        assert read_video_metadata(path) == clip.metadata


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_other_programs_find_the_metadata_of_a_video_in_its_comment(drawn, tmp_path, suffix):
    [path] = drawn.save(tmp_path / f"cat{suffix}")
    with av.open(str(path)) as container:
        told = {key.lower(): text for key, text in container.metadata.items()}
    assert json.loads(told["comment"]) == drawn.metadata


def test_other_programs_find_the_metadata_of_a_webp_in_the_user_comment_of_its_exif(drawn, tmp_path):
    [path] = drawn.save(tmp_path / "cat.webp")
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert json.loads(comment.removeprefix(b"ASCII\0\0\0")) == drawn.metadata


def test_a_video_repacked_without_coding_keeps_its_metadata(drawn, tmp_path):
    [path] = drawn.save(tmp_path / "cat.mp4")
    with av.open(str(path)) as source, av.open(str(tmp_path / "cat.mkv"), "w") as target:
        target.metadata["comment"] = source.metadata["comment"]  # as ffmpeg does with all of them
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_video_metadata(tmp_path / "cat.mkv") == drawn.metadata


def test_a_file_of_another_program_is_one_without_metadata(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "plain.webp")
    (tmp_path / "deep.png").write_bytes(png_with("[" * 100_000))
    (tmp_path / "list.png").write_bytes(png_with("[1]"))
    (tmp_path / "cut.webp").write_bytes((tmp_path / "plain.webp").read_bytes()[:20])
    assert [find_video_metadata(tmp_path / name) for name in ("plain.webp", "deep.png", "list.png")] == [None] * 3
    with pytest.raises(FileFormatError, match=r"cut\.webp"):
        find_video_metadata(tmp_path / "cut.webp")


def png_with(comment):
    from PIL.PngImagePlugin import PngInfo

    text, file = PngInfo(), io.BytesIO()
    text.add_text("Comment", comment)
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=text)
    return file.getvalue()


# ---- what they are


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cat.mp4", ("mp4", "h264", 17, 17 / 8)),
        ("cat.webm", ("webm", "vp9", 17, 17 / 8)),
        ("cat.gif", ("gif", "", 17, 17 / 8)),
        ("cat.webp", ("webp", "", 17, 17 / 8)),
        ("cat.png", ("png", "", 17, 0)),
        ("cat", ("png", "", 17, 0)),
    ],
)
def test_a_file_says_what_it_is(drawn, tmp_path, name, told):
    paths = drawn.save(tmp_path / name)
    found = describe_video(tmp_path / name)
    assert (found.format, found.codec, found.num_pictures) == told[:3]
    assert found.seconds == pytest.approx(told[3], abs=0.006)
    assert (found.height, found.width) == (64, 64)
    assert found.size_bytes == sum(path.stat().st_size for path in paths)
    assert found.fps == pytest.approx(8 if told[3] else 0, rel=0.01)


# ---- refusals, before and at the end of the work


@pytest.mark.parametrize(
    ("name", "options", "size", "message"),
    [
        ("cat.webm", {"codec": "h265"}, (9, 64, 64), r"codec is 'h265', which is for \.mp4"),
        ("cat.gif", {"codec": "h264"}, (9, 64, 64), r"codec is 'h264', which is for \.mp4"),
        ("cat.mp4", {"codec": "h266"}, (9, 64, 64), r"codec 'h266' is unknown, did you mean 'h26"),
        ("cat.webp", {"crf": 20}, (9, 64, 64), r"crf is 20, which is for \.mp4 and \.webm: leave it out"),
        ("cat.webm", {"crf": 64}, (9, 64, 64), r"crf is 64, and goes from 1 \(large\) to 63 \(poor\): try 20"),
        ("cat.mp4", {"codec": "h265"}, (9, 32, 64), r"libx265 takes no side under 34: use codec='h264'"),
        ("cat.webm", {}, (9, 63, 64), r"63x64, and yuv420p needs even sizes"),
        ("cat.webp", {}, (9, 64, 20000), r"no side may be over 16383"),
        ("cat.jpg", {}, (9, 64, 64), r"holds one picture, and there are 9 frames: write \.mp4, or \.png"),
    ],
)
def test_what_a_format_cannot_hold_is_known_before_any_work(tmp_path, name, options, size, message):
    with pytest.raises(ConfigError, match=message):
        check_destination(tmp_path / name, size=size, **options)
    if max(size) < 1000:
        with pytest.raises(ConfigError, match=message):
            Clip(frames=torch.zeros(*size, 3, dtype=torch.uint8), fps=8).save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_is_not_installed_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    lacking = {name: replace(codec, encoder=f"{codec.encoder}-lacking") for name, codec in CODECS.items()}
    monkeypatch.setattr("reelora.generate.formats.CODECS", lacking)
    with pytest.raises(ConfigError, match=r"has no encoder libx265-lacking: its wheels on PyPI have it \(pip install"):
        check_destination(tmp_path / "cat.mp4", codec="h265")
    check_destination(tmp_path / "cat.gif")


def test_a_still_and_the_frames_of_a_video_do_not_stand_in_each_others_way(drawn, tmp_path):
    still = replace(drawn, frames=drawn.frames[:1])
    drawn.save(tmp_path / "cat.png")
    [path] = still.save(tmp_path / "cat.png")
    assert len(list(tmp_path.iterdir())) == 18
    with pytest.raises(ConfigError, match=r"cat\.png exists already"):
        check_destination(tmp_path / "cat.png", size=still.size)
    replace(still, metadata={"seed": 8}).save(tmp_path / "cat.png", overwrite=True)
    assert read_video_metadata(path) == {"seed": 8}
    assert read_video_metadata(tmp_path / "cat_0003.png") == drawn.metadata
    (tmp_path / "cat.png").unlink()
    with pytest.raises(ConfigError, match=r"cat_0000\.png.* exists already"):
        check_destination(tmp_path / "cat.png")  # how many frames there will be is not known


def test_a_file_that_appears_while_frames_are_encoded_is_not_overwritten(drawn, tmp_path, monkeypatch):
    from reelora.generate import formats

    def slow(frames, file, *others):
        (tmp_path / "cat.gif").write_bytes(b"of somebody else")
        return write(frames, file, *others)

    row = formats.FORMATS[".gif"]
    write = row.write
    monkeypatch.setitem(formats.FORMATS, ".gif", replace(row, write=slow))
    with pytest.raises(ConfigError, match=r"cat\.gif exists already"):
        drawn.save(tmp_path / "cat.gif")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of somebody else"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_disk_that_fills_up_within_a_video_says_so(tmp_path, suffix):
    noise = torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with files_of_at_most(20_000), pytest.raises(OSError, match=rf"File too large.*cat{suffix}"):
        Clip(frames=noise, fps=8).save(tmp_path / f"cat{suffix}", crf=1)
    assert not list(tmp_path.iterdir())


def test_frames_are_encoded_without_a_copy_of_all_of_them(tmp_path):
    import tracemalloc

    clip = texture(64, 128, 128)
    clip.save(tmp_path / "warm.mp4")
    tracemalloc.start()
    try:
        clip.save(tmp_path / "cat.mp4")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < clip.frames.numel() / 4


def test_a_rate_that_is_a_fraction_is_kept_exactly_in_mp4(tmp_path):
    [path] = replace(texture(), fps=30000 / 1001).save(tmp_path / "cat.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
