"""A finished video in memory, and its way to the disk."""

import io
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reelora.errors import ConfigError, first_few, nearest
from reelora.shapes import FramesU8
from reelora.tensorio import atomic_path, is_text, shown

from .encode import CodecName
from .formats import FORMATS, Crf, Size, encoding_of, problems_with
from .names import existing_files, files_of

__all__ = ["Clip", "check_destination", "to_mp4_bytes"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip:
    """Frames ``(t, h, w, 3)`` of 0 to 255, their rate, and how they were made. One frame is a picture."""

    frames: FramesU8
    fps: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: prompt, seed, model, adapters ...; the same job has the same, so no clock times."""
    notes: tuple[str, ...] = ()
    """What the maker should know, such as words of the prompt that the model did not read. Not written to files."""

    def __post_init__(self) -> None:
        shape = tuple(self.frames.shape)
        if self.frames.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ConfigError(
                f"Frames are {self.frames.dtype} {shape}; they have to be torch.uint8 (t, h, w, 3), t at least 1."
            )
        if not 0 < self.fps <= 1000:
            raise ConfigError(f"fps is {self.fps}; it has to be over 0 and at most 1000.")

    @property
    def size(self) -> Size:
        """Frames, height and width."""
        count, height, width, _ = self.frames.shape
        return count, height, width

    def save(self, path: str | Path, *, overwrite: bool = False, codec: CodecName = "auto", crf: Crf = "auto") -> list[Path]:
        """Write the clip with its metadata in the format of the suffix and return the files that it is now in.

        ``.mp4`` (H.264, or H.265 as ``codec="h265"``) and ``.webm`` (VP9) play in browsers; ``crf`` is their quality, and
        less is better and larger. ``.gif`` and ``.webp`` loop. ``cat.png``, or ``cat`` without a suffix, makes
        ``cat_0000.png``, ``cat_0001.png`` ..., and exactly ``cat.png`` of a clip of one frame, which ``.webp`` and ``.jpg``
        take too. Frames are encoded one after the other; only gif and webp hold them all. All files appear whole or none.

        Raises ConfigError for an unknown suffix, what its format cannot hold (an odd size as mp4), an encoder that is not
        installed, and files that exist unless ``overwrite``; OSError where the folder is missing or cannot be written, or
        the disk is full.
        """
        path = Path(path)
        check_destination(path, overwrite=overwrite, size=self.size, codec=codec, crf=crf)
        suffix, files = path.suffix.lower(), files_of(path, len(self.frames))
        write, encoding = FORMATS[suffix].write, encoding_of(suffix, codec, crf)
        with ExitStack() as stack:
            for index, file in enumerate(files):
                frames = self.frames if len(files) == 1 else self.frames[index : index + 1]
                with stack.enter_context(atomic_path(file)).open("wb") as opened:
                    write(frames, opened, encoding, self.fps, self.metadata)
            _check_free(path, overwrite=overwrite, num_frames=len(self.frames))  # it may have come while frames were encoded
        for stale in set(existing_files(path, len(self.frames))) - set(files):
            stale.unlink()
        return files


def to_mp4_bytes(frames: FramesU8, *, fps: float, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The mp4 that a clip of these frames is saved as."""
    size = Clip(frames=frames, fps=fps).size
    if problems := problems_with(".mp4", size=size, codec="auto", crf="auto"):
        raise ConfigError(_unwritable("The clip", ".mp4", problems))
    file = io.BytesIO()
    FORMATS[".mp4"].write(frames, file, encoding_of(".mp4", "auto", "auto"), fps, metadata or {})
    return file.getvalue()


def check_destination(
    path: str | Path,
    *,
    overwrite: bool = False,
    size: Size | None = None,
    codec: CodecName = "auto",
    crf: Crf = "auto",
) -> None:
    """Raise what ``save`` would raise for this path, before any work is done for it.

    ConfigError for a name that is no UTF-8, an unknown suffix, a folder, files that exist unless ``overwrite``, and what
    cannot be written at this ``size`` (frames, height, width; where it is not known yet, nothing is said of it); OSError for
    a folder that is missing or takes no files, which is found out with a short-lived one.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not is_text(str(path)):
        raise ConfigError(f"{shown(str(path))} is no UTF-8 text, as which libav takes names: choose another name.")
    if suffix not in FORMATS:
        raise ConfigError(f"{path}: {suffix} is no format for a clip, {nearest(suffix, filter(None, FORMATS))}.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, such as {path / 'clip.mp4'}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "There is no such folder; make it first", str(path.parent))
    if problems := problems_with(suffix, size=size, codec=codec, crf=crf):
        raise ConfigError(_unwritable(str(path), suffix, problems))
    _check_free(path, overwrite=overwrite, num_frames=size[0] if size else None)
    _check_writable(path)


def _unwritable(what: str, suffix: str, problems: list[str]) -> str:
    return f"{what} cannot be written as {suffix or '.png'}: {'; '.join(problems)}."


def _check_free(path: Path, *, overwrite: bool, num_frames: int | None) -> None:
    if not overwrite and (found := existing_files(path, num_frames)):
        names = first_few([str(file) for file in found])
        raise ConfigError(f"{names} exists already; choose another name, or allow it with overwrite=True (--overwrite).")


class _ProbedError(Exception):
    """Ends a probe: what has been written is taken away again."""


def _check_writable(path: Path) -> None:
    """Write one byte beside the place of a file, as the file itself will be written."""
    try:
        with suppress(_ProbedError), atomic_path(path) as probe:
            probe.write_bytes(b"?")
            raise _ProbedError
    except OSError as error:
        advice = f"The folder takes no file ({error.strerror}); choose another, or make room"
        raise OSError(error.errno, advice, str(path)) from error
