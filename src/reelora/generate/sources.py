"""What a video begins with besides a prompt: an image or another video."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelora.catalog import ModelFacts
from reelora.data import Fit
from reelora.errors import ConfigError
from reelora.shapes import FramesU8
from reelora.tensorio import expanded

from .pictures import fit, frames_of, read_frames, read_picture

__all__ = ["Given", "Source", "read_image", "read_video"]

Given = str | Path | Any
"""A file; or pixels: a PIL image, an array or tensor of 0 to 255 in ``(h, w, 3)`` or ``(t, h, w, 3)``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Frames as they were given, in their own size."""

    frames: FramesU8
    name: str
    """The path as it was given; empty for pixels in memory."""
    sha256: str
    """Of the file, or of the pixels."""

    def fitted(self, *, height: int, width: int, mode: Fit) -> FramesU8:
        """Brought to a size."""
        return fit(self.frames, height=height, width=width, mode=mode)

    @property
    def description(self) -> dict[str, str]:
        """For a file's metadata."""
        return ({"file": self.name} if self.name else {}) | {"sha256": self.sha256}


def read_image(image: Given) -> Source:
    """A conditioning image; raises what `read_picture` raises, and ConfigError for pixels that are none."""
    if isinstance(image, str | Path):
        return _of_file(image, read_picture(image))
    return _of_pixels(frames_of(image)[:1])


def read_video(video: Given, facts: ModelFacts, *, num_frames: int) -> Source:
    """As many frames as are to be made, at the model's frame rate.

    Raises what `read_frames` raises, and ConfigError for pixels that are no such video.
    """
    if isinstance(video, str | Path):
        return _of_file(video, read_frames(video, count=num_frames, fps=facts.fps))
    frames = frames_of(video)
    if len(frames) < num_frames:
        raise ConfigError(f"The video to begin with has {len(frames)} frames, {num_frames} are to be made: make fewer.")
    return _of_pixels(frames[:num_frames])


def _of_file(path: str | Path, frames: FramesU8) -> Source:
    digest = hashlib.sha256(expanded(path).read_bytes()).hexdigest()
    return Source(frames=frames, name=str(path), sha256=digest)


def _of_pixels(frames: FramesU8) -> Source:
    return Source(frames=frames, name="", sha256=hashlib.sha256(frames.numpy().tobytes()).hexdigest())
