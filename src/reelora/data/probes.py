"""``probes/HASH.txt``: what a video is, by the hash of its bytes, so that a complete cache opens no video."""

import hashlib
import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from reelora.tensorio import atomic_path

from .probe import Probe, probe_video

__all__ = ["PROBES", "find_probe", "probe_files", "probe_path", "write_probe"]

PROBES = "probes"

_VERSION = 1
"""Raise it when the facts of a video, or how they are found, change."""

_PROBE = TypeAdapter(Probe)


def find_probe(cache: Path, video: str, path: Path) -> Probe:
    """The facts of a video that the cache knows, or else those of its file. Raises as ``probe_video`` does."""
    try:
        said, _, digest = probe_path(cache, video).read_bytes().rstrip().rpartition(b"\n")
        return _PROBE.validate_json(said) if digest == _digest(said) else probe_video(path)
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return probe_video(path)


def write_probe(cache: Path, video: str, probe: Probe) -> None:
    """Keep the facts of a video, unless they are kept already."""
    path, said = probe_path(cache, video), _PROBE.dump_json(probe)
    text = said + b"\n" + _digest(said) + b"\n"
    if not path.is_file() or path.read_bytes() != text:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(text)


def _digest(said: bytes) -> bytes:
    return hashlib.sha256(said).hexdigest().encode()


def probe_files(cache: Path) -> list[Path]:
    """The facts of videos that a cache holds."""
    return sorted(path for path in (cache / PROBES).glob("*.txt") if not path.name.startswith("."))


def probe_path(cache: Path, video: str) -> Path:
    """Where the facts of a video are kept, given by the SHA-256 of its bytes."""
    name = hashlib.sha256(json.dumps([_VERSION, video]).encode()).hexdigest()
    return cache / PROBES / f"{name}.txt"
