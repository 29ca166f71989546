"""What a video says about how it was made, read back from its file."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from reelora.errors import FileFormatError

from .images import EXIF_COMMENT, EXIF_FOLDER, EXIF_LETTERS
from .names import first_file
from .opening import opened_image, opened_video

__all__ = ["READABLE", "find_video_metadata", "read_video_metadata"]


def read_video_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata in a file that a clip was saved to, of any format; of png also by the path given to ``save``.

    Raises FileFormatError where the file cannot be read or holds no such metadata, OSError where it is missing.
    """
    path = first_file(path)
    comment = _READERS.get(path.suffix.lower(), _read_mp4)(path)
    if (metadata := _parsed(comment)) is None:
        raise FileFormatError(
            f"{path}: its comment is {comment[:40]!r}, not the JSON that reelora writes; another program made or changed it."
        )
    return metadata


def find_video_metadata(path: str | Path) -> dict[str, Any] | None:
    """As `read_video_metadata`, but None for a file that can be read and holds nothing of ours."""
    path = first_file(path)
    return _parsed(_READERS.get(path.suffix.lower(), _read_mp4)(path))


def _parsed(comment: str) -> dict[str, Any] | None:
    try:
        metadata = json.loads(comment)
    except (ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _read_libav(path: Path, name: str) -> str:
    with opened_video(path, name) as container:
        return next((text for key, text in container.metadata.items() if key.lower() == "comment"), "")


def _read_gif_or_png(path: Path) -> str:
    with opened_image(path) as image:
        comment = image.info.get("Comment", image.info.get("comment", ""))
    return _text(comment)


def _read_jpeg(path: Path) -> str:
    with opened_image(path) as image:
        segments = [content for name, content in getattr(image, "applist", []) if name == "COM"]
    return _text(b"".join(segments))


def _read_webp(path: Path) -> str:
    with opened_image(path) as image:
        comment = image.getexif().get_ifd(EXIF_FOLDER).get(EXIF_COMMENT, b"")
    return _text(comment.removeprefix(EXIF_LETTERS) if isinstance(comment, bytes) else comment)


def _text(comment: object) -> str:
    return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)


_read_mp4 = partial(_read_libav, name="mp4")
_read_matroska = partial(_read_libav, name="matroska")
_READERS: Mapping[str, Callable[[Path], str]] = {
    ".mp4": _read_mp4,
    ".m4v": _read_mp4,
    ".mov": _read_mp4,
    ".webm": _read_matroska,
    ".mkv": _read_matroska,
    ".gif": _read_gif_or_png,
    ".png": _read_gif_or_png,
    ".webp": _read_webp,
    ".jpg": _read_jpeg,
    ".jpeg": _read_jpeg,
}
READABLE = frozenset(_READERS)
"""The suffixes that are looked into: what a clip can be saved as, and what other programs repack such files as."""
