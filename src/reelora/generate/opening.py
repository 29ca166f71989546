"""Files of videos and images, opened so that nothing else is, with one clear error for what they are not."""

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reelora.errors import FileFormatError

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL.Image import Image

__all__ = ["opened_image", "opened_video"]

_IMAGES = ("GIF", "PNG", "WEBP", "JPEG")


@contextmanager
def opened_video(path: Path, name: str) -> Iterator["InputContainer"]:
    """A video in the container that libav calls ``name``. Raises FileFormatError for what cannot be read, also within."""
    import av
    from av.error import FFmpegError

    # An open file and a fixed format: a playlist in disguise could otherwise make libav open other files.
    with path.open("rb") as file:
        try:
            with av.open(file, "r", format=name, metadata_errors="replace") as container:
                yield container
        except (FFmpegError, OSError) as error:
            # A file that is cut short sends libav to a place before its beginning, which Python's file refuses.
            if not isinstance(error, FFmpegError) and error.errno != errno.EINVAL:
                raise
            raise FileFormatError(f"{path}: is no {path.suffix[1:] or name} that can be read ({error.strerror}).") from error


@contextmanager
def opened_image(path: Path) -> Iterator["Image"]:
    """A gif, png, webp or jpeg. Raises FileFormatError for what cannot be read, also within."""
    from PIL import Image

    with path.open("rb") as file:
        try:
            with Image.open(file, formats=_IMAGES) as image:
                yield image
        except (OSError, Image.DecompressionBombError, SyntaxError, ValueError, EOFError, struct.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FileFormatError(f"{path}: is no gif, png, webp or jpg that can be read ({error}).") from error
