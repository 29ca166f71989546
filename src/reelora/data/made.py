"""``.made/HASH/``: clips that a base made of a class, and their list. Whoever makes them decides what the hash is of."""

from dataclasses import dataclass
from pathlib import Path

from .sources import MEDIA

__all__ = ["MADE", "MadeClips", "made_clips"]

MADE = ".made"
"""Folder of the cache; hidden, since the cache may lie among the clips."""


@dataclass(frozen=True, kw_only=True)
class MadeClips:
    """One set of clips of a class."""

    folder: Path
    num_clips: int
    size_bytes: int
    used_at: float
    """Seconds since 1970 of the last training that found or made it."""


def made_clips(cache: Path) -> list[MadeClips]:
    """The clips that were made for a cache, those used last at the end."""
    found = [_made(folder) for folder in sorted((cache / MADE).glob("*")) if folder.is_dir()]
    return sorted(found, key=lambda made: made.used_at)


def _made(folder: Path) -> MadeClips:
    files = {path: path.stat() for path in folder.iterdir()}
    clips = [path for path in files if path.suffix in MEDIA["both"] and not path.name.startswith(".")]
    return MadeClips(
        folder=folder,
        num_clips=len(clips),
        size_bytes=sum(stat.st_size for stat in files.values()),
        used_at=max((stat.st_mtime for stat in files.values()), default=folder.stat().st_mtime),
    )
