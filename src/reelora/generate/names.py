"""How the files of a clip are called, and which names are still free."""

import re
from collections.abc import Collection
from itertools import count
from pathlib import Path

__all__ = ["existing_files", "files_of", "first_file", "frame_path", "frame_paths", "free_path"]

_NUMBERED = r"_\d{4,}\.png"


def files_of(path: Path, num_frames: int) -> list[Path]:
    """The files that a clip of so many frames becomes at ``path``: one, or one for each frame as png."""
    if not _is_numbered(path):
        return [path]
    return [_still_path(path)] if num_frames == 1 else [frame_path(path, index) for index in range(num_frames)]


def existing_files(path: Path, num_frames: int | None = None) -> list[Path]:
    """What already lies where a clip would go; of an unknown number of frames, all that any number could meet."""
    still = [file for file in [_still_path(path) if _is_numbered(path) else path] if file.exists()]
    if not _is_numbered(path):
        return still
    frames = frame_paths(path)
    return still + frames if num_frames is None else still if num_frames == 1 else frames


def first_file(path: str | Path) -> Path:
    """The file at ``path``, or else the picture or the first frame that a clip saved there is in."""
    path = Path(path)
    names = [path, _still_path(path), frame_path(path, 0)] if _is_numbered(path) else [path]
    return next((name for name in names if name.is_file()), path)


def free_path(path: str | Path, *, taken: Collection[Path] = ()) -> Path:
    """``path`` if nothing lies there, else the first of ``cat-1.mp4``, ``cat-2.mp4`` ... that is free.

    ``taken`` are paths that other clips of the same call will have.
    """
    path = Path(path)
    names = (path if number == 0 else _with_number(path, number) for number in count())
    return next(name for name in names if name not in taken and not existing_files(name))


def frame_path(path: Path, index: int) -> Path:
    """``cat.png`` or ``cat`` holds its frames as ``cat_0000.png``, ``cat_0001.png`` ..."""
    return path.with_name(f"{_stem(path)}_{index:04d}.png")


def frame_paths(path: Path) -> list[Path]:
    """All frames that a path has on disk, in their order."""
    if not path.parent.is_dir():
        return []
    wanted = re.compile(re.escape(_stem(path)) + _NUMBERED)
    found = [entry for entry in path.parent.iterdir() if wanted.fullmatch(entry.name)]
    return sorted(found, key=lambda entry: (len(entry.name), entry.name))


def _is_numbered(path: Path) -> bool:
    return path.suffix.lower() in ("", ".png")


def _still_path(path: Path) -> Path:
    return path if path.suffix else path.with_name(f"{path.name}.png")


def _with_number(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".png" else path.name
