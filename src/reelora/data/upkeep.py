"""What a cache holds, whether it is whole, and what of it can go."""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from reelora.errors import DataError, FileFormatError

from .entries import IMAGES, EntryKind, clip_of_image, entry_files, find_entry, read_whole_entry
from .made import MADE, made_clips
from .manifest import SETS, Manifest, manifests_in, read_manifest
from .plan import OnProgress
from .probes import PROBES, probe_files, probe_path
from .read_only import is_read_only

__all__ = [
    "CacheSet",
    "Damage",
    "Pruning",
    "alone_in",
    "cache_sets",
    "in_use",
    "plan_pruning",
    "unused_entries",
    "verify_cache",
]

_LOCK = "lock"
_SECONDS_PER_DAY = 86400


@dataclass(frozen=True, kw_only=True)
class CacheSet:
    """One data set of a cache, in one size, for one model."""

    manifest: Path
    num_clips: int
    settings: dict[str, str | int | float]
    num_entries: int
    size_bytes: int
    used_at: float
    """Seconds since 1970 of the last ``precompute`` that found or made it."""

    @property
    def name(self) -> str:
        return self.manifest.stem


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file of a cache that is not what it should be, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The files that can go, and folders with all that is in them, each with its reason."""

    files: tuple[Damage, ...]

    @property
    def size_bytes(self) -> int:
        inside = [path for file in self.files if file.path.is_dir() for path in file.path.iterdir()]
        return sum(path.stat().st_size for path in (*inside, *(file.path for file in self.files)) if path.is_file())

    def run(self) -> None:
        """Delete them."""
        for file in self.files:
            if file.path.is_dir():
                shutil.rmtree(file.path)
            else:
                file.path.unlink(missing_ok=True)


# Locks. Many may fill a cache at once; who deletes must be alone.


@contextmanager
def in_use(cache: Path, *, to_read: bool = False) -> Iterator[None]:
    """A time in which nothing of a cache is deleted; waits while something is.

    Raises OSError where the cache cannot be written, unless it is only ``to_read``.
    """
    with ExitStack() as opened:
        if file := _lock_file(cache, opened, to_read):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def alone_in(cache: Path, *, to_read: bool = False) -> Iterator[None]:
    """A time in which nobody else works on a cache. Raises DataError at once where somebody does, and as ``in_use`` does."""
    with ExitStack() as opened:
        if file := _lock_file(cache, opened, to_read):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"{cache}: is being filled by another process; wait until it is done, or stop it.") from error
        yield


def _lock_file(cache: Path, opened: ExitStack, to_read: bool) -> IO[bytes] | None:
    """The file that is locked; None for a cache to be read that has none and takes none, which nobody works on then."""
    path = cache / _LOCK
    try:
        return opened.enter_context(path.open("ab"))
    except OSError as error:
        if not (to_read and is_read_only(error)):
            raise
    return opened.enter_context(path.open("rb")) if path.is_file() else None


# What there is.


def cache_sets(cache: Path) -> tuple[list[CacheSet], list[Damage]]:
    """The data sets of a cache, the one used last at the end, and the manifests that are none."""
    sets: list[CacheSet] = []
    damaged: list[Damage] = []
    for path in manifests_in(cache):
        try:
            sets.append(_set(path, read_manifest(path)[1]))
        except FileFormatError as error:
            damaged.append(Damage(path=path, reason=str(error)))
    return sets, damaged


def _set(path: Path, manifest: Manifest) -> CacheSet:
    records = [*manifest.latents.values(), *manifest.prompts.values()]
    return CacheSet(
        manifest=path,
        num_clips=len(manifest.clips),
        settings=manifest.settings,
        num_entries=len(records),
        size_bytes=sum(record.size_bytes for record in records),
        used_at=path.stat().st_mtime,
    )


def unused_entries(cache: Path) -> list[Path]:
    """Entries and facts of videos that no data set of a cache names, and what killed processes left half written.

    Nothing is deleted.
    """
    return [file.path for file in _unused(cache, [path for path in manifests_in(cache) if _is_manifest(path)])]


def verify_cache(cache: Path, *, on_progress: OnProgress | None = None) -> list[Damage]:
    """Read every entry of a cache and compare its values with their hash: the files that are damaged."""
    _, damaged = cache_sets(cache)
    entries = [(kind, path) for kind, path in entry_files(cache) if not _is_leftover(path)]
    for done, (kind, path) in enumerate(entries, 1):
        try:
            read_whole_entry(cache, kind, path.stem)
        except DataError as error:
            damaged.append(Damage(path=path, reason=str(error)))
        if on_progress:
            on_progress(done, len(entries), "")
    return damaged


def plan_pruning(cache: Path, *, days: float, on_progress: OnProgress | None = None) -> Pruning:
    """What can go: data sets and clips of a class not used for so many ``days``, what no other set names, leftovers, and what
    is damaged."""
    now = time.time()
    limit = days * _SECONDS_PER_DAY
    old = [path for path in manifests_in(cache) if now - path.stat().st_mtime > limit]
    made = [found.folder for found in made_clips(cache) if now - found.used_at > limit]
    damaged = verify_cache(cache, on_progress=on_progress)
    gone = {damage.path for damage in damaged}
    kept = [path for path in manifests_in(cache) if path not in old and path not in gone]
    files = [
        *damaged,
        *(Damage(path=path, reason=f"not used for more than {days:g} days") for path in [*old, *made] if path not in gone),
        *(file for file in _unused(cache, kept) if file.path not in gone and file.path.parent not in made),
    ]
    return Pruning(files=tuple(files))


def _unused(cache: Path, manifests: list[Path]) -> list[Damage]:
    used: set[str] = set()
    known: set[Path] = set()
    for path in manifests:
        manifest = read_manifest(path)[1]
        used |= {f"{key}.safetensors" for key in (*manifest.latents, *manifest.prompts)}
        known |= {probe_path(cache, clip.video) for clip in manifest.clips}
    idle = [path for kind, path in entry_files(cache) if not _is_used(cache, kind, path, used)]
    idle += [path for path in probe_files(cache) if path not in known]
    half = [path for name in (SETS, PROBES, f"{MADE}/*") for path in sorted(cache.glob(f"{name}/.*"))]
    return [
        Damage(path=path, reason="half written" if _is_leftover(path) else "no data set uses it") for path in [*idle, *half]
    ]


def _is_used(cache: Path, kind: EntryKind, path: Path, used: set[str]) -> bool:
    """Whether some data set names an entry; draws of a picture belong to the clip that they begin."""
    if kind is not IMAGES or _is_leftover(path):
        return path.name in used
    store = find_entry(cache, kind, path.stem)
    return store is not None and f"{clip_of_image(store)}.safetensors" in used


def _is_manifest(path: Path) -> bool:
    try:
        read_manifest(path)
    except FileFormatError:
        return False
    return True


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".")
