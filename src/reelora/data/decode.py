"""Pictures out of video files: the only module that talks to libav."""

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import isnan
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from reelora.errors import DataError, FileFormatError
from reelora.shapes import FramesU8

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["Footage", "Picture", "file_hash", "open_footage", "pixels_of", "turns_of"]

# Containers only: a playlist (hls, concat, dash) named .mp4 could make libav open other files or addresses.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg,apng,"
    "wav,mp3,flac,aac,png_pipe,jpeg_pipe,webp_pipe,webp,bmp_pipe,tiff_pipe"
)
_GUARDS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}

_SIGNATURES = {"MP4": (4, b"ftyp"), "Matroska": (0, b"\x1a\x45\xdf\xa3"), "AVI": (0, b"RIFF"), "GIF": (0, b"GIF8")}
_ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC: the cover of a song is no footage

# Decoding from the start is exact everywhere; going to a key picture is worth its risks only in long videos.
_WORTH_SEEKING = 5.0
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
_SEEK_MARGIN = 1.0

Picture = tuple[float, "VideoFrame"]
"""Seconds after the first picture, and what is on screen from then on."""


@dataclass(frozen=True, kw_only=True)
class Footage:
    """What the packets of an opened video say, before any of them is decoded."""

    path: Path
    num_frames: int
    seconds: float
    fps: float
    is_steady: bool
    """False for a variable frame rate: some picture stays more than a tenth longer or shorter than most."""

    last_time: float
    pixel_aspect: float
    """Width of one pixel over its height."""

    start_time: float
    """Timestamp of the first picture; not a number for a stream without timestamps."""

    def pictures(self, *, start: float = 0.0) -> Generator[Picture, None, None]:
        """Decode in display order, from the first picture, or from a key picture at ``start`` seconds or earlier.

        Raises DataError where the data are damaged.
        """
        with _opened(self.path) as container:
            pictures = _decoded(container, self, start)
            opening = next(pictures)
            if opening[0] <= start:
                yield opening
                yield from pictures
                return
        with _opened(self.path) as container:  # its index led past the start
            yield from _decoded(container, self, 0.0)


@contextmanager
def _opened(path: Path) -> Iterator["InputContainer"]:
    import av
    from av.error import FFmpegError

    path = path.absolute()
    with path.open("rb") as file:  # a file that is missing, a folder or not readable is an OSError here
        head = file.read(16)
    if not head:
        raise FileFormatError(f"{path}: is empty (0 bytes); copy or download it again.")
    try:
        container = av.open(str(path), container_options=_GUARDS, metadata_errors="replace")
    except FFmpegError as error:
        raise FileFormatError(f"{path}: {_why_not_opened(head)}") from error
    with closing(container):
        yield container


def _why_not_opened(head: bytes) -> str:
    begun = [name for name, (at, mark) in _SIGNATURES.items() if head[at : at + len(mark)] == mark]
    if begun:
        return f"begins as {begun[0]} but is truncated or damaged: its index cannot be read, 0 frames decoded. Get it again."
    return "is not a video that can be read (mp4, mov, mkv, webm, avi, gif ...)."


def open_footage(path: Path) -> Footage:
    """Read the packets of a video's first moving stream and prove that all of it is there.

    Raises FileFormatError for what is no video, DataError for sound only, for no frames and for a truncated file,
    with the number of frames that could be decoded, and OSError where the file is missing.
    """
    with _opened(path) as container:
        stream = _moving_stream(container, path)
        footage, missing = _scan(container, stream, path)
    if missing:
        good = _count_good(footage)
        raise DataError(f"{path}: is truncated: {missing}; {good} frames could be decoded. Get it again, or cut it anew.")
    if not footage.num_frames:
        raise DataError(f"{path}: has a picture track without a single frame.")
    return footage


def _moving_stream(container: "InputContainer", path: Path) -> "VideoStream":
    moving = [stream for stream in container.streams.video if not int(stream.disposition) & _ATTACHED_PICTURE]
    if not moving:
        what = "sound only" if container.streams.audio else "no picture track"
        raise DataError(f"{path}: has {what}; a clip needs pictures.")
    return moving[0]


def _scan(container: "InputContainer", stream: "VideoStream", path: Path) -> tuple[Footage, str]:
    """The times of all pictures, and what shows that the file stops early ('' where nothing does)."""
    from av.error import FFmpegError

    times: list[float] = []
    durations: list[float] = []
    num_packets, end, fault = 0, 0.0, ""
    try:
        for packet in container.demux():
            start = packet.pts if packet.pts is not None else packet.dts
            if not packet.size:
                continue
            tick = float(packet.time_base or 0)
            if start is not None:
                end = max(end, (start + (packet.duration or 0)) * tick)
            if packet.stream.index != stream.index:
                continue
            num_packets += 1
            fault = fault or ("its last frame is cut" if packet.is_corrupt else "")
            if not packet.is_discard:
                times.append(start * tick if start is not None else float("nan"))
                durations.append((packet.duration or 0) * tick)
    except FFmpegError as error:
        fault = f"reading stops with {error.strerror!r}"
    footage = _footage(path, stream, times, durations)
    return footage, _what_is_missing(container, stream, num_packets, end, footage) or fault


def _footage(path: Path, stream: "VideoStream", times: list[float], durations: list[float]) -> Footage:
    start_time = float("nan") if np.isnan(times).any() else min(times, default=float("nan"))
    guess = float(stream.average_rate or stream.guessed_rate or 0) or 1.0
    if np.isnan(times).any():  # raw streams without timestamps: count
        times = [index / guess for index in range(len(times))]
    times = sorted(times)
    steps = [after - before for before, after in pairwise(times) if after > before]
    step = median(steps) if steps else (durations[0] if durations and durations[0] > 0 else 1 / guess)
    span = times[-1] - times[0] if times else 0.0
    tick = float(stream.time_base or 0)
    return Footage(
        path=path,
        num_frames=len(times),
        seconds=span + step if times else 0.0,
        fps=(len(times) - 1) / span if span > 0 else 1 / step,
        is_steady=all(abs(other - step) <= 0.1 * step + tick for other in steps),
        last_time=span,
        pixel_aspect=float(stream.sample_aspect_ratio or 1),
        start_time=start_time,
    )


def _what_is_missing(container: "InputContainer", stream: "VideoStream", num_packets: int, end: float, footage: Footage) -> str:
    """Formats that declare a count (MP4, AVI) are held to it, the others to the length that they declare."""
    if num_packets < stream.frames:
        return f"holds {num_packets} of {stream.frames} frames"
    declared = (container.duration or 0) / 1_000_000
    if stream.frames == 0 and declared - end > max(0.1, 1.5 / footage.fps, 0.02 * declared):
        return f"ends at {end:.2f} of {declared:.2f} seconds"
    return ""


def _count_good(footage: Footage) -> int:
    count = 0
    try:
        for _ in footage.pictures():
            count += 1
    except DataError:
        pass
    return count


def _decoded(container: "InputContainer", footage: Footage, start: float) -> Iterator[Picture]:
    from av.error import FFmpegError

    stream = _moving_stream(container, footage.path)
    stream.thread_type = "AUTO"
    count, begin, time = 0, _sought(container, stream, footage, start), -1 / footage.fps
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise DataError(f"{footage.path}: is damaged after {count} of {footage.num_frames} frames. Get it again.")
            begin = frame.time if begin is None else begin
            # A timestamp that is absent or goes back is replaced by one at the usual distance.
            stamp = frame.time - begin if frame.time is not None and begin is not None else time
            time = stamp if stamp > time else time + 1 / footage.fps
            yield time, frame
            count += 1
    except FFmpegError as error:
        raise DataError(
            f"{footage.path}: is damaged ({error.strerror}) after {count} of {footage.num_frames} frames. Get it again."
        ) from error
    if not count or time < footage.last_time - 2.5 / footage.fps:
        raise DataError(f"{footage.path}: only {count} of {footage.num_frames} frames can be decoded. Get it again.")


def _sought(container: "InputContainer", stream: "VideoStream", footage: Footage, start: float) -> float | None:
    """Go to a key picture well before ``start`` where that saves work; the timestamp to count from, None at the beginning."""
    is_indexed = container.format.name in _INDEXED and not isnan(footage.start_time)
    if start < _WORTH_SEEKING or not is_indexed or not stream.time_base:
        return None
    container.seek(int((footage.start_time + start - _SEEK_MARGIN) / stream.time_base), stream=stream)
    return footage.start_time


def turns_of(frame: "VideoFrame") -> int:
    """The quarter turns (counter-clockwise) that bring a picture upright."""
    return round(frame.rotation / 90) % 4


def pixels_of(frame: "VideoFrame") -> tuple[FramesU8, int]:
    """The picture as RGB bytes ``(1 h w c)``, upright, and the quarter turns (counter-clockwise) that this took."""
    turns = turns_of(frame)
    upright = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    return torch.from_numpy(np.ascontiguousarray(upright))[None], turns


def file_hash(path: Path) -> str:
    """SHA-256 in hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
