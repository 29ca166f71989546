"""The formats of a clip, one row for each suffix, and what each of them cannot do."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal

from reelora.errors import nearest
from reelora.shapes import FramesU8

from .encode import CODECS, Codec, CodecName, Container, Encoding, write_video
from .images import to_gif_bytes, to_jpeg_bytes, to_png_bytes, to_webp_bytes

__all__ = ["FORMATS", "Crf", "Format", "Size", "encoding_of", "problems_with"]

Crf = int | Literal["auto"]
"""The constant rate factor of a codec; auto is the one at which most people see no loss."""

Size = tuple[int, int, int]
"""Frames, height and width."""

Write = Callable[[FramesU8, BinaryIO, Encoding, float, Mapping[str, Any]], None]
"""Puts frames into an opened file: coded so, at so many frames per second, with these metadata."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file."""

    write: Write
    codecs: tuple[str, ...] = ()
    """Those that it may hold, the default first; none where there is nothing to choose."""
    max_side: int = 65500
    is_still: bool = False
    """Whether it holds one picture alone."""

    def codec(self, name: CodecName) -> Codec:
        """The codec of a name; of a format without any, one that is not used."""
        return CODECS[self.codecs[0] if name == "auto" else name] if self.codecs else _NO_CODEC


_NO_CODEC = Codec(encoder="", crf=0, crfs=range(1), min_side=1)


def _video(container: Container) -> Write:
    def write(frames: FramesU8, file: BinaryIO, encoding: Encoding, fps: float, metadata: Mapping[str, Any]) -> None:
        write_video(frames, file, container, encoding, fps=fps, metadata=metadata)

    return write


def _reel(to_bytes: Callable[..., bytes]) -> Write:
    def write(frames: FramesU8, file: BinaryIO, encoding: Encoding, fps: float, metadata: Mapping[str, Any]) -> None:
        file.write(to_bytes(frames, fps=fps, metadata=metadata))

    return write


def _still(to_bytes: Callable[..., bytes]) -> Write:
    def write(frames: FramesU8, file: BinaryIO, encoding: Encoding, fps: float, metadata: Mapping[str, Any]) -> None:
        file.write(to_bytes(frames[0], metadata=metadata))

    return write


_PNG = Format(write=_still(to_png_bytes))
_JPEG = Format(write=_still(to_jpeg_bytes), is_still=True)

FORMATS: Mapping[str, Format] = {
    ".mp4": Format(write=_video(Container(name="mp4", options={"movflags": "+faststart"})), codecs=("h264", "h265")),
    # Without bitexact the tracks of a webm are named by chance.
    ".webm": Format(
        write=_video(Container(name="webm", options={"fflags": "+bitexact", "cues_to_front": "1"})), codecs=("vp9",)
    ),
    ".gif": Format(write=_reel(to_gif_bytes)),
    ".webp": Format(write=_reel(to_webp_bytes), max_side=16383),
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    "": _PNG,
}
"""What a suffix stands for. Of png each frame is a file, which the caller sees to."""


def encoding_of(suffix: str, codec: CodecName, crf: Crf) -> Encoding:
    """What stands for ``auto`` filled in, for what `problems_with` has nothing against."""
    row = FORMATS[suffix].codec(codec)
    return Encoding(codec=row, crf=row.crf if crf == "auto" else crf)


def problems_with(suffix: str, *, size: Size | None, codec: CodecName, crf: Crf) -> list[str]:
    """Why no such file can be, each with what to do; nothing is said of a size that is not known."""
    row = FORMATS[suffix]
    if problem := _codec_problem(row, codec):
        return [problem]
    chosen = row.codec(codec)
    checks = [partial(_encoder_problems, row, chosen), partial(_crf_problems, row, chosen, crf)]
    if size is not None:
        checks.insert(0, partial(_size_problems, row, chosen, size))
    return [problem for check in checks for problem in check()]


def _codec_problem(row: Format, codec: CodecName) -> str:
    if codec == "auto" or codec in row.codecs:
        return ""
    if codec not in CODECS:
        return f"codec {codec!r} is unknown, {nearest(codec, ['auto', *CODECS])}"
    return f"codec is {codec!r}, which is for {' and '.join(name for name, other in FORMATS.items() if codec in other.codecs)}"


def _size_problems(row: Format, codec: Codec, size: Size) -> Iterator[str]:
    count, height, width = size
    most = min(row.max_side, codec.max_side) if row.codecs else row.max_side
    if row.is_still and count > 1:
        yield f"it holds one picture, and there are {count} frames: write .mp4, or .png for a file of each"
    if row.codecs and (height % 2 or width % 2):
        yield f"its frames are {height}x{width}, and yuv420p needs even sizes: crop them, or write .gif or .png"
    if max(height, width) > most:
        yield f"its frames are {height}x{width}, and no side may be over {most}: reduce them, or write .png"
    elif min(height, width) < codec.min_side and not (height % 2 or width % 2):
        yield f"its frames are {height}x{width}, and {codec.encoder} takes no side under {codec.min_side}: use codec='h264'"


def _encoder_problems(row: Format, codec: Codec) -> Iterator[str]:
    import av

    if row.codecs and codec.encoder not in av.codecs_available:
        yield (
            f"this PyAV ({av.__version__}) has no encoder {codec.encoder}: its wheels on PyPI have it (pip install "
            "--force-reinstall --only-binary av av), or choose another codec or suffix"
        )


def _crf_problems(row: Format, codec: Codec, crf: Crf) -> Iterator[str]:
    if crf == "auto":
        return
    if not row.codecs:
        names = " and ".join(name for name, other in FORMATS.items() if other.codecs)
        yield f"crf is {crf}, which is for {names}: leave it out"
    elif crf not in codec.crfs:
        lowest, highest = codec.crfs[0], codec.crfs[-1]
        yield f"crf is {crf}, and goes from {lowest} (large) to {highest} (poor): try {codec.crf}"
