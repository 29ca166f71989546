"""What a file of a video is, whoever made it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .names import first_file, frame_paths
from .opening import opened_image, opened_video

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL.Image import Image

__all__ = ["VideoFile", "describe_video"]

_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4", ".webm": "matroska", ".mkv": "matroska"}


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video or a picture on disk, by what its header and its packets say."""

    format: str
    codec: str
    """Empty where the format has but one."""
    pixel_format: str
    height: int
    width: int
    num_pictures: int
    """Of gif and webp fewer than frames, where some equal the one before."""
    seconds: float
    """0 of still pictures."""
    size_bytes: int
    """Of all files of the clip."""

    @property
    def fps(self) -> float:
        """Pictures per second on average; 0 of still pictures."""
        return self.num_pictures / self.seconds if self.seconds else 0.0


def describe_video(path: str | Path) -> VideoFile:
    """Read what a file is without decoding it; the frames of a clip saved as pngs count as one.

    Raises FileFormatError for what cannot be read, OSError where it is missing.
    """
    path = Path(path)
    first = first_file(path)
    files = frame_paths(path) if first in frame_paths(path) and first != path else [first]
    size_bytes = sum(file.stat().st_size for file in files)
    if name := _CONTAINERS.get(first.suffix.lower()):
        with opened_video(first, name) as container:
            return VideoFile(**_video_facts(container), format=first.suffix[1:].lower(), size_bytes=size_bytes)
    return VideoFile(**_image_facts(first, len(files)), size_bytes=size_bytes)


def _video_facts(container: "InputContainer") -> dict[str, Any]:
    stream = next(iter(container.streams.video), None)
    if stream is None:
        return {"codec": "no video", "pixel_format": "", "height": 0, "width": 0, "num_pictures": 0, "seconds": 0.0}
    count = sum(bool(packet.size) for packet in container.demux(stream))
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    context = stream.codec_context
    return {
        "codec": context.name if context else "",
        "pixel_format": (context.pix_fmt or "") if context else "",
        "height": stream.height,
        "width": stream.width,
        "num_pictures": count,
        "seconds": count / rate if rate else 0.0,
    }


def _image_facts(path: Path, num_files: int) -> dict[str, Any]:
    with opened_image(path) as image:
        count = getattr(image, "n_frames", 1)
        times = [_page_ms(image, index) for index in range(count)] if count > 1 else [0]
        return {
            "format": (image.format or "").lower(),
            "codec": "",
            "pixel_format": image.mode.lower(),
            "height": image.height,
            "width": image.width,
            "num_pictures": max(count, num_files),
            "seconds": sum(times) / 1000,
        }


def _page_ms(image: "Image", index: int) -> int:
    image.seek(index)
    image.load()  # of webp the time is known only then
    return int(image.info.get("duration", 0))
