"""Frames into the bytes of files. The same frames give the same bytes: no clock, no number of cores."""

import io
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from reelora.errors import ConfigError
from reelora.shapes import FramesU8

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DEFAULT_CRF", "to_comment", "to_gif_bytes", "to_mp4_bytes", "to_png_bytes"]

DEFAULT_CRF = 18
"""Constant rate factor of x264 at which most people see no loss."""

_BT709 = 1
_LIMITED_RANGE = 1
_X264_THREADS = 4
"""Fixed, because x264's output depends on it."""

_PALETTE_PIXELS = 4_000_000
"""Enough pixels to choose 256 colours by."""


def to_comment(metadata: Mapping[str, Any]) -> str:
    """Metadata as ASCII JSON with sorted keys, which the text fields of every format can hold."""
    return json.dumps(dict(metadata), sort_keys=True)


def to_mp4_bytes(frames: FramesU8, *, fps: float, metadata: Mapping[str, Any] | None = None, crf: int = DEFAULT_CRF) -> bytes:
    """An mp4 that plays everywhere: H.264 High, yuv420p in BT.709, index in front; metadata as JSON in ``comment``.

    Raises ConfigError for odd sizes, which yuv420p has not, and for a ``crf`` outside 1 (large) to 51 (poor).
    """
    import av

    _check_mp4(frames, crf)
    file = io.BytesIO()
    # faststart reads the file again while it is written: lend it a second view.
    container = av.open(
        file,
        "w",
        format="mp4",
        options={"movflags": "+faststart"},
        io_open=lambda url, flags, options: io.BytesIO(file.getvalue()),
    )
    with container:
        container.metadata["comment"] = to_comment(metadata or {})
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=_x264_options(crf))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        _tag_colours(stream.codec_context)
        for array in frames.cpu().numpy():
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")))
        container.mux(stream.encode(None))
    return file.getvalue()


def to_gif_bytes(frames: FramesU8, *, fps: float, metadata: Mapping[str, Any] | None = None) -> bytes:
    """A gif that loops, with one palette for all frames; metadata as JSON in its comment block.

    Times are kept as near as hundredths of a second allow. Frames that equal the one before only prolong it.
    """
    pictures = _with_palette(frames.cpu().numpy())
    ends = [round(100 * (index + 1) / fps) for index in range(len(pictures))]
    durations = [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        comment=to_comment(metadata or {}),
    )
    return file.getvalue()


def to_png_bytes(
    image: UInt8[Tensor, "h w c"] | UInt8[np.ndarray, "h w c"], *, metadata: Mapping[str, Any] | None = None
) -> bytes:
    """A png; metadata, if any, as JSON in its text field ``Comment``."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if metadata is not None:
        text.add_text("Comment", to_comment(metadata))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG", pnginfo=text)
    return file.getvalue()


def _check_mp4(frames: FramesU8, crf: int) -> None:
    _, height, width, _ = frames.shape
    problems = []
    if height % 2 or width % 2:
        problems.append(f"its frames are {height}x{width}, and yuv420p needs even sizes: crop them, or write .gif or .png")
    if crf not in range(1, 52):
        problems.append(f"crf is {crf}, and goes from 1 (large) to 51 (poor): try {DEFAULT_CRF}")
    if problems:
        raise ConfigError(f"The clip cannot be written as mp4: {'; '.join(problems)}.")


def _x264_options(crf: int) -> dict[str, str]:
    # Its macroblock tree reads memory that nobody wrote where a row has few macroblocks (64 pixels): other bytes every time.
    return {"crf": str(crf), "profile": "high", "threads": str(_X264_THREADS), "x264-params": "mbtree=0"}


def _tag_colours(context: Any) -> None:
    """Say how the colours are coded: players guess by the size where nothing is said, and guess differently."""
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE


def _with_palette(frames: UInt8[np.ndarray, "t h w 3"]) -> list["Image"]:
    from PIL import Image

    stride = 1 + int((frames.size / 3 / _PALETTE_PIXELS) ** 0.5)
    sample = frames[:, ::stride, ::stride]
    palette = Image.fromarray(sample.reshape(-1, sample.shape[2], 3)).quantize(256)
    return [Image.fromarray(np.ascontiguousarray(frame)).quantize(palette=palette) for frame in frames]
