"""Where and how videos are written."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from reelora.errors import ConfigError, nearest
from reelora.generate import CodecName, Crf
from reelora.recipes.files import check_picture

__all__ = ["Saving", "check_codec"]


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Where videos go. Raises ConfigError for wishes that contradict each other, and for a sheet that is no picture."""

    output: Path | None = None
    """None is ``video.mp4``, or ``image.png``; several are numbered."""
    overwrite: bool = False
    number: bool = False
    """Take the next free name where a file exists."""
    resume: bool = False
    """Leave out what is there already, made of the very same; what was made otherwise is replaced only with ``overwrite``."""
    codec: CodecName = "auto"
    crf: Crf = "auto"
    sheet: Path | None = None
    """A picture of all videos."""

    def __post_init__(self) -> None:
        if self.number and self.resume:
            raise ConfigError("--number takes names that are free, --resume looks for files that are there: give one of them.")
        if self.sheet:
            check_picture(self.sheet)


def check_codec(name: str) -> CodecName:
    """The codec called ``name``; ConfigError names the nearest one."""
    for codec in get_args(CodecName):
        if name == codec:
            return codec
    raise ConfigError(f"There is no codec {name!r}: {nearest(name, get_args(CodecName))}.")
