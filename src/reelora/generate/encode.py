"""Frames into video files by libav. The same frames give the same bytes: no clock, no number of cores, no stray memory."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from reelora.shapes import FramesU8

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["CODECS", "Codec", "CodecName", "Container", "Encoding", "to_comment", "write_video"]

CodecName = Literal["auto", "h264", "h265", "vp9"]
"""auto is what plays on most machines: the first one of a format."""

_BT709 = 1
_LIMITED_RANGE = 1


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How one way to code a video is asked for."""

    encoder: str
    """As libav calls it."""
    crf: int
    """Constant rate factor at which most people see no loss."""
    crfs: range
    """From large files to poor pictures."""
    min_side: int
    """Even, since yuv420p has no odd sizes."""
    max_side: int = 16384
    options: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""
    """What the file calls it, where players know it by that name alone."""


CODECS: Mapping[str, Codec] = {
    # The number of threads is fixed, because x264's output depends on it. Its macroblock tree reads memory that nobody wrote
    # where a row has few macroblocks (64 pixels): other bytes every time.
    "h264": Codec(
        encoder="libx264",
        crf=18,
        crfs=range(1, 52),
        min_side=2,
        options={"profile": "high", "threads": "4", "x264-params": "mbtree=0"},
    ),
    # x265 does the same in rows of one coding unit, and its tree also writes where it should not: 48x48 crashes. So no tree,
    # small units, and at least two in a row. Its note in the stream (info) would name the processor.
    "h265": Codec(
        encoder="libx265",
        crf=20,
        crfs=range(1, 52),
        min_side=34,
        options={"x265-params": "log-level=none:info=0:frame-threads=1:pools=4:ctu=32:cutree=0"},
        tag="hvc1",
    ),
    "vp9": Codec(
        encoder="libvpx-vp9",
        crf=20,
        crfs=range(1, 64),
        min_side=2,
        options={"b": "0", "deadline": "good", "cpu-used": "2", "threads": "4", "row-mt": "0", "tile-columns": "2"},
    ),
}
"""The crfs of h265 and vp9 give the luma of drawn textures the PSNR, within half a dB, that h264 gives it at 18."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """How a kind of file is asked for; its index comes first, so that browsers play it while it loads."""

    name: str
    """As libav calls it."""
    options: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What has been chosen for one file."""

    codec: Codec
    crf: int


def to_comment(metadata: Mapping[str, Any]) -> str:
    """Metadata as ASCII JSON with sorted keys, which the text fields of every format can hold."""
    return json.dumps(dict(metadata), sort_keys=True)


def write_video(
    frames: FramesU8, file: BinaryIO, container: Container, encoding: Encoding, *, fps: float, metadata: Mapping[str, Any]
) -> None:
    """Encode frame by frame into an opened file: yuv420p in BT.709, the metadata as JSON in its comment.

    Sizes have to be even. A write that fails raises its own OSError.
    """
    import av

    codec = encoding.codec
    # An index in front is made by reading the file again while it is written: lend it a second view.
    opened = av.open(
        file,
        "w",
        format=container.name,
        options=dict(container.options),
        io_open=lambda url, flags, options: _second_view(file),
    )
    with opened:
        opened.metadata["comment"] = to_comment(metadata)
        options = {"crf": str(encoding.crf), **codec.options}
        stream: Any = opened.add_stream(codec.encoder, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        if codec.tag:
            stream.codec_context.codec_tag = codec.tag
        _tag_colours(stream.codec_context)
        for picture in _pictures(frames):
            opened.mux(stream.encode(picture))
        opened.mux(stream.encode(None))


def _second_view(file: BinaryIO) -> BinaryIO:
    file.flush()
    return io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else Path(file.name).open("rb")


def _pictures(frames: FramesU8) -> Iterator["VideoFrame"]:
    from av import VideoFrame

    for frame in frames:
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame.cpu().numpy()), format="rgb24")
        yield picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")


def _tag_colours(context: Any) -> None:
    """Say how the colours are coded: players guess by the size where nothing is said, and guess differently."""
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
