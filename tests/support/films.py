"""Small films, drawn and encoded on the spot."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

Film = Callable[..., Path]

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".ts": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9"}


def grey(index: int, *, height: int = 32, width: int = 48) -> np.ndarray:
    """A plain picture whose brightness says which one of a film of at most 29 it is."""
    return np.full((height, width, 3), 20 + 8 * (index % 29), np.uint8)


def which(frames) -> list[int]:
    """The index of each grey frame."""
    return [round((float(frame.float().mean()) - 20) / 8) for frame in frames]


def write_film(
    path: Path,
    pictures: int | Sequence[np.ndarray] = 12,
    *,
    fps: float = 8,
    times_ms: Sequence[int] | None = None,
    faststart: bool = False,
    noise: int | None = None,
    setup: Callable[[VideoStream], None] = lambda stream: None,
) -> Path:
    """Encode pictures (or that many grey ones) at a fixed rate, or at the given times in milliseconds."""
    if isinstance(pictures, int):
        pictures = [grey(index) for index in range(pictures)]
    if noise is not None:
        rng = np.random.default_rng(noise)
        pictures = [rng.integers(0, 255, picture.shape, dtype=np.uint8) for picture in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(CODECS[path.suffix], rate=Fraction(fps).limit_denominator(1001))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, _ = pictures[0].shape
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000  # enough that a step of 8 in brightness is never coded as no change
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        setup(stream)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float, name: str | None = None) -> Path:
    """Keep only the first part of a file's bytes."""
    data = path.read_bytes()
    target = path.with_name(name) if name else path
    target.write_bytes(data[: int(len(data) * share)])
    return target
