"""Reading what a user gives to begin with: an image or a video, in files or in memory."""

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from reelora.data import ClipSettings, Fit, fitted, place, probe_video, read_as
from reelora.errors import ConfigError, DataError, FileFormatError
from reelora.shapes import FramesU8
from reelora.tensorio import expanded

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["fit", "frames_of", "read_frames", "read_picture"]

OtherSizeU8 = UInt8[Tensor, "t _ _ c"]
"""The same frames at another size."""

_DAMAGE = (SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, zlib.error)
"""What PIL's readers raise on bytes that are not what their header says; an OSError without a number of its own too."""

_UNREADABLE = (".webp",)
"""What clips can be saved as and libav does not decode."""

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_DEEPEST = 65535
_CHANNELS, _ALPHA = 3, 4
_AXES = {2: "h w", 3: "h w c", 4: "t h w c"}


def read_picture(path: str | Path) -> FramesU8:
    """A picture in any format that PIL reads, as a clip ``(1, h, w, 3)`` of 0 to 255.

    It is turned as its Exif says; what is transparent lies on white; grey, palettes, CMYK and 16 bits become RGB of 8; of an
    animation the first picture is taken. Colour profiles are not applied, as in training. Raises FileFormatError for what
    is no picture, or not all there, DataError for values without a scale (floats, 32 bits), and OSError for a file that is
    missing.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = expanded(path)
    with path.open("rb") as file:
        try:
            with Image.open(file) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
        except UnidentifiedImageError as error:
            raise FileFormatError(
                f"{path}: is no picture that can be read (png, jpg, webp, avif, tiff, bmp ...). Convert it to png; a video is "
                "something else to begin with."
            ) from error
        except Image.DecompressionBombError as error:
            raise FileFormatError(f"{path}: is far larger than any model can use ({error}). Reduce it first.") from error
        except (OSError, *_DAMAGE) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FileFormatError(f"{path}: is a picture that is cut off or damaged ({error}). Get it again.") from error
    return _as_frames(_as_rgb(upright, f"{path}: "))


def read_frames(path: str | Path, *, count: int, fps: float) -> FramesU8:
    """The first ``count`` frames of a video at ``fps``, upright, in square pixels and in its own size.

    By the rules of training: frame ``k`` is the picture on screen ``k / fps`` seconds after the first one. Raises DataError
    for a video that is truncated, damaged, has no pictures or too few of them, FileFormatError for what is no video, and
    OSError where the file is missing.
    """
    path = expanded(path)
    if path.suffix.lower() in _UNREADABLE:
        raise DataError(f"{path}: a webp that moves cannot be read back as a video here. Give it as .mp4, .webm or .gif.")
    probe = probe_video(path)
    if (own := probe.own_frames(fps)) < count:
        raise DataError(
            f"{path}: is too short: {probe.seconds:.2f} s give {own} frames at {fps:g} fps, and {count} are to be made. "
            "Give a longer video, or make fewer frames."
        )
    height, width = (max(1, round(side)) for side in probe.upright)
    settings = ClipSettings(num_frames=count, height=height, width=width, fps=fps, min_share=1)
    return read_as(path, settings)[0]


def fit(frames: FramesU8, *, height: int, width: int, mode: Fit = "crop") -> OtherSizeU8:
    """Frames at a size, scaled as in training (bicubic, antialiased, never squashed), and by ``mode`` cropped or filled.

    Raises ConfigError for an unknown mode, with the nearest, and sizes under 1.
    """
    settings = ClipSettings(num_frames=len(frames), height=height, width=width, fps=1, fit=mode)
    return fitted(frames, place((frames.shape[1], frames.shape[2]), settings), settings)


def frames_of(pixels: Any) -> FramesU8:
    """Pixels in memory as frames ``(t, h, w, 3)``: a PIL image, or an array or tensor of 0 to 255.

    Arrays are ``(h, w)`` (grey), ``(h, w, c)`` or ``(t, h, w, c)``, with 1 (grey), 3, or 4 channels, of which the fourth is
    laid on white. Raises ConfigError for other axes, channels or numbers, and DataError for an image without a scale.
    """
    if hasattr(pixels, "getbands"):
        return _as_frames(_as_rgb(pixels, "The image "))
    values = pixels.cpu() if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    if problem := _problem(values):
        raise ConfigError(f"The pixels to begin with are {values.dtype} {tuple(values.shape)}: {problem}.")
    values = values[..., None] if values.ndim == 2 else values
    values = values[None] if values.ndim == 3 else values
    return _three_channels(values).contiguous()


def _problem(values: Tensor) -> str:
    if values.ndim not in _AXES:
        return f"they have to be {', '.join(f'({axes})' for axes in _AXES.values())}"
    if 0 in values.shape:
        return "there is none"
    if values.ndim > 2 and values.shape[-1] not in (1, _CHANNELS, _ALPHA):
        moved = " (the channels have to be last: move them)" if _CHANNELS in values.shape[:-2] else ""
        return f"the last axis holds {values.shape[-1]} channels, and has to hold 1, 3 or 4{moved}"
    if values.dtype != torch.uint8:
        return "they have to be uint8, 0 to 255: for floats of 0 to 1 give (255 * pixels).round().astype('uint8')"
    return ""


def _three_channels(values: UInt8[Tensor, "t h w _"]) -> FramesU8:
    if values.shape[-1] == 1:
        return values.expand(-1, -1, -1, _CHANNELS)
    if values.shape[-1] == _CHANNELS:
        return values
    alpha = values[..., _CHANNELS:].float() / 255
    return (values[..., :_CHANNELS] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def _as_rgb(image: "Image", what: str) -> "Image":
    from PIL import Image

    if image.mode in _DEEP_MODES:
        return _from_deep(image, what)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _from_deep(image: "Image", what: str) -> "Image":
    """Grey of 16 bits: 65535 is white."""
    from PIL import Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > _DEEPEST:
        raise DataError(
            f"{what}holds numbers from {low:g} to {high:g}, and nothing says which of them is white. Convert it to 8 or "
            "16 bits."
        )
    levels = (values.astype(np.uint32) * 255 + _DEEPEST // 2) // _DEEPEST
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _as_frames(image: "Image") -> FramesU8:
    return torch.from_numpy(np.array(image))[None]
