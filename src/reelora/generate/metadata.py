"""What a video says about how it was made, read back from its file."""

import json
from pathlib import Path
from typing import Any

from reelora.errors import FileFormatError

from .names import frame_path

__all__ = ["read_video_metadata"]


def read_video_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata in an mp4, gif or png that a clip was saved to; for png also by the path given to ``save``.

    Raises FileFormatError where the file cannot be read or holds no such metadata, OSError where it is missing.
    """
    path = Path(path)
    if not path.exists() and frame_path(path, 0).is_file():
        path = frame_path(path, 0)
    comment = _READERS.get(path.suffix.lower(), _read_mp4)(path)
    try:
        metadata = json.loads(comment)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise FileFormatError(
            f"{path}: its comment is {comment[:40]!r}, not the JSON that reelora writes; another program made or changed it."
        )
    return metadata


def _read_mp4(path: Path) -> str:
    import av
    from av.error import FFmpegError

    # An open file and a fixed format: a playlist in disguise could otherwise make libav open other files.
    with path.open("rb") as file:
        try:
            with av.open(file, format="mp4", metadata_errors="replace") as container:
                return container.metadata.get("comment", "")
        except FFmpegError as error:
            raise FileFormatError(f"{path}: is no mp4 that can be read ({error.strerror}).") from error


def _read_image(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    with path.open("rb") as file:
        try:
            with Image.open(file, formats=["GIF", "PNG"]) as image:
                comment = image.info.get("Comment", image.info.get("comment", ""))
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise FileFormatError(f"{path}: is no gif or png that can be read ({error}).") from error
    return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)


_READERS = {".gif": _read_image, ".png": _read_image}
