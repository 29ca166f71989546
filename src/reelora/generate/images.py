"""Frames into the bytes of image files, still and moving. The same frames give the same bytes."""

import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from reelora.shapes import FramesU8

from .encode import to_comment

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["EXIF_COMMENT", "EXIF_FOLDER", "EXIF_LETTERS", "to_gif_bytes", "to_jpeg_bytes", "to_png_bytes", "to_webp_bytes"]

EXIF_FOLDER, EXIF_COMMENT = 0x8769, 0x9286
"""The tags of Exif under which a comment lies. Source: Exif 2.3, section 4.6.5."""
EXIF_LETTERS = b"ASCII\0\0\0"
"""What such a comment begins with."""

_PALETTE_PIXELS = 4_000_000
"""Enough pixels to choose 256 colours by."""
_WEBP_QUALITY, _JPEG_QUALITY = 90, 95
_JPEG_COMMENT = b"\xff\xfe"
_JPEG_ROOM = 65533
"""Bytes that one segment holds."""


def to_png_bytes(
    image: UInt8[Tensor, "h w c"] | UInt8[np.ndarray, "h w c"], *, metadata: Mapping[str, Any] | None = None
) -> bytes:
    """A png; metadata, if any, as JSON in its text field ``Comment``."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if metadata is not None:
        text.add_text("Comment", to_comment(metadata))
    return _saved(_picture(image), format="PNG", pnginfo=text)


def to_jpeg_bytes(image: UInt8[Tensor, "h w c"] | UInt8[np.ndarray, "h w c"], *, metadata: Mapping[str, Any]) -> bytes:
    """A jpeg with colours at full size; metadata as JSON in its comments, of which a long one takes several."""
    content = _saved(_picture(image), format="JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    text = to_comment(metadata).encode("ascii")
    parts = [text[start : start + _JPEG_ROOM] for start in range(0, len(text), _JPEG_ROOM)]
    segments = b"".join(_JPEG_COMMENT + (len(part) + 2).to_bytes(2, "big") + part for part in parts)
    begun = 4 + int.from_bytes(content[4:6], "big")  # after the mark of a jpeg and its first segment, which must stay first
    return content[:begun] + segments + content[begun:]


def to_gif_bytes(frames: FramesU8, *, fps: float, metadata: Mapping[str, Any] | None = None) -> bytes:
    """A gif that loops, with one palette for all frames; metadata as JSON in its comment block.

    Times are kept as near as hundredths of a second allow. Frames that equal the one before only prolong it.
    """
    first, *others = _with_palette(frames)
    times = _durations(len(frames), fps, tick_ms=10)
    text = to_comment(metadata or {})
    return _saved(first, format="GIF", save_all=True, append_images=others, duration=times, loop=0, comment=text)


def to_webp_bytes(frames: FramesU8, *, fps: float, metadata: Mapping[str, Any]) -> bytes:
    """A webp that loops, or a still one of a single frame; metadata as JSON in the user comment of its Exif.

    Times are kept as near as milliseconds allow. Frames that equal the one before only prolong it.
    """
    first, *others = [_picture(frame) for frame in frames]
    options = {"format": "WEBP", "quality": _WEBP_QUALITY, "method": 4, "exif": _exif(metadata)}
    if not others:
        return _saved(first, **options)
    times = _durations(len(frames), fps, tick_ms=1)
    return _saved(first, **options, save_all=True, append_images=others, duration=times, loop=0)


def _saved(picture: "Image", **options: Any) -> bytes:
    # Not straight into a file: there PIL's own writers leave out why a disk took no more.
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def _picture(image: Tensor | np.ndarray) -> "Image":
    from PIL import Image

    array = image.cpu().numpy() if isinstance(image, Tensor) else image
    return Image.fromarray(np.ascontiguousarray(array))


def _durations(count: int, fps: float, *, tick_ms: int) -> list[int]:
    """Milliseconds of each frame, in whole ticks that never run away from the rate."""
    ends = [round(1000 / tick_ms * index / fps) for index in range(count + 1)]
    return [tick_ms * (end - start) for start, end in pairwise(ends)]


def _with_palette(frames: FramesU8) -> Iterator["Image"]:
    from PIL import Image

    stride = 1 + int((frames.numel() / 3 / _PALETTE_PIXELS) ** 0.5)
    sample = frames[:, ::stride, ::stride].cpu().numpy()
    palette = Image.fromarray(np.ascontiguousarray(sample.reshape(-1, sample.shape[2], 3))).quantize(256)
    return (_picture(frame).quantize(palette=palette) for frame in frames)


def _exif(metadata: Mapping[str, Any]) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(EXIF_FOLDER)[EXIF_COMMENT] = EXIF_LETTERS + to_comment(metadata).encode("ascii")
    return exif.tobytes()
