"""``inspect`` of a video or a picture: what the file is, and how it was made where it says so."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .texts import plain

if TYPE_CHECKING:
    from reelora.generate import VideoFile

__all__ = ["VideoInspection", "inspect_video", "is_video"]

VIDEO_SUFFIXES = frozenset((".gif", ".jpeg", ".jpg", ".m4v", ".mkv", ".mov", ".mp4", ".png", ".webm", ".webp"))
NO_METADATA = (
    "unknown: the file holds nothing about it. Reelora writes it into every video; programs that encode a video again, "
    "and many sites that take them, leave it out"
)
SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True, kw_only=True)
class VideoInspection:
    """What is known of a video."""

    file: "VideoFile"
    metadata: Mapping[str, Any] | None
    """What Reelora wrote of how it was made; None where nothing is there."""

    def as_json(self) -> dict[str, object]:
        """The metadata, and ``file`` beside them; that alone where there are none."""
        return {**(self.metadata or {}), "file": {**asdict(self.file), "fps": self.file.fps}}

    @property
    def facts(self) -> dict[str, object]:
        """The same in words, for people."""
        made = {"how it was made": NO_METADATA} if self.metadata is None else dict(_told(self.metadata))
        return {**dict(_file_facts(self.file)), **made}


def is_video(path: Path) -> bool:
    """Whether a path is looked at as a video or a picture, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def inspect_video(path: Path) -> VideoInspection:
    """What a video is and how it was made. Raises FileFormatError for what cannot be read, OSError where it is missing."""
    from reelora.generate import describe_video, find_video_metadata

    return VideoInspection(file=describe_video(path), metadata=find_video_metadata(path))


def _file_facts(file: "VideoFile") -> Iterator[tuple[str, object]]:
    rate = f" at {file.fps:.4g} fps, {file.seconds:.4g} s" if file.seconds else ""
    yield "file", ", ".join(part for part in (file.format, file.codec, file.pixel_format) if part)
    yield "pictures", f"{file.num_pictures} of {file.height} x {file.width}{rate}"
    sizes = (f"{file.size_bytes / unit:.3g} {name}" for unit, name in SIZES if file.size_bytes >= unit)
    yield "size", next(sizes, f"{file.size_bytes} bytes")


def _told(metadata: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Every entry as text, nested ones under headings."""
    for key, value in metadata.items():
        name = plain(str(key), width=40)
        if isinstance(value, Mapping):
            yield name, _texts(value)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            yield from _several(name, value)
        else:
            yield name, _text(value)


def _several(name: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, object]]:
    """Adapters one by one; of the clips in a picture of many what all of them share."""
    if name == "adapters":
        yield from ((f"adapter {index} of {len(entries)}", _texts(entry)) for index, entry in enumerate(entries, 1))
        return
    shared = {key: value for key, value in entries[0].items() if all(key in other and other[key] == value for other in entries)}
    yield name, f"{len(entries)}, which --json shows one by one"
    yield f"same in all {name}", _texts(shared)


def _texts(entries: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): text for key, value in entries.items() if (text := _text(value))}


def _text(value: object) -> str:
    """What reads well on a line: the axes of a grid as their values, anything else that is nested as JSON."""
    if isinstance(value, list) and value and all(_is_axis(item) for item in value):
        return "; ".join(f"{axis['name']}={','.join(map(_text, axis['values']))}" for axis in value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _is_axis(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == {"name", "values"} and isinstance(value["values"], list)
