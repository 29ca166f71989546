"""A finished video in memory, and its way to the disk."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reelora.errors import ConfigError, first_few, nearest
from reelora.shapes import FramesU8
from reelora.tensorio import atomic_path

from .encode import DEFAULT_CRF, to_gif_bytes, to_mp4_bytes, to_png_bytes
from .names import frame_path, frame_paths

__all__ = ["Clip", "check_destination"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip:
    """Frames ``(t, h, w, 3)`` of 0 to 255, their rate, and how they were made."""

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

    def save(self, path: str | Path, *, overwrite: bool = False, crf: int = DEFAULT_CRF) -> list[Path]:
        """Write the clip with its metadata in the format of the suffix and return the files that it is now in.

        ``.mp4`` plays everywhere (``crf`` is its quality, 18 good, less is better and larger); ``.gif`` loops;
        ``cat.png``, or ``cat`` without a suffix, makes ``cat_0000.png``, ``cat_0001.png`` ... All files appear whole or none.

        Raises ConfigError for an unknown suffix, an odd size as mp4, and files that exist unless ``overwrite``; OSError
        where the folder is missing or cannot be written, or the disk is full.
        """
        path = Path(path)
        check_destination(path, overwrite=overwrite)
        files = _FORMATS[path.suffix.lower()](self, path, crf)
        _write_all(files)
        for stale in set(_existing(path)) - set(files):
            stale.unlink()
        return list(files)


def check_destination(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise what ``save`` would raise for this path, before any work is done for it.

    ConfigError for an unknown suffix, a folder, or files that exist unless ``overwrite``; OSError for a folder that is
    missing or takes no files, which is found out with a short-lived one.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ConfigError(f"{path}: {suffix} is no format for a clip, {nearest(suffix, filter(None, _FORMATS))}.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, such as {path / 'clip.mp4'}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "There is no such folder; make it first", str(path.parent))
    if (found := _existing(path)) and not overwrite:
        names = first_few([str(file) for file in found])
        raise ConfigError(f"{names} exists already; choose another name, or allow it with overwrite=True.")
    _check_writable(path)


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


def _existing(path: Path) -> list[Path]:
    if path.suffix.lower() in ("", ".png"):
        return frame_paths(path)
    return [path] if path.exists() else []


def _write_all(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its place, and only when all are written move them there."""
    with ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(atomic_path(path)).write_bytes(content)


def _mp4(clip: Clip, path: Path, crf: int) -> dict[Path, bytes]:
    return {path: to_mp4_bytes(clip.frames, fps=clip.fps, metadata=clip.metadata, crf=crf)}


def _gif(clip: Clip, path: Path, crf: int) -> dict[Path, bytes]:
    return {path: to_gif_bytes(clip.frames, fps=clip.fps, metadata=clip.metadata)}


def _pngs(clip: Clip, path: Path, crf: int) -> dict[Path, bytes]:
    return {frame_path(path, i): to_png_bytes(frame, metadata=clip.metadata) for i, frame in enumerate(clip.frames.cpu())}


_FORMATS: Mapping[str, Callable[[Clip, Path, int], dict[Path, bytes]]] = {
    ".mp4": _mp4,
    ".gif": _gif,
    ".png": _pngs,
    "": _pngs,
}
