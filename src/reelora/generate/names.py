"""How the frames of a clip are called when each is a file."""

import re
from pathlib import Path

__all__ = ["frame_path", "frame_paths"]

_NUMBERED = r"_\d{4,}\.png"


def frame_path(path: Path, index: int) -> Path:
    """``cat.png`` or ``cat`` holds its frames as ``cat_0000.png``, ``cat_0001.png`` ..."""
    return path.with_name(f"{_stem(path)}_{index:04d}.png")


def frame_paths(path: Path) -> list[Path]:
    """All frames that a path has on disk, in their order."""
    if not path.parent.is_dir():
        return []
    wanted = re.compile(re.escape(_stem(path)) + _NUMBERED)
    return sorted(entry for entry in path.parent.iterdir() if wanted.fullmatch(entry.name))


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".png" else path.name
