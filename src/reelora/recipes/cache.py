"""``cache``: what a cache of clips holds, whether it is whole, and what of it can go."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from reelora.data import (
    MADE,
    SETS,
    CacheSet,
    Damage,
    MadeClips,
    OnProgress,
    Pruning,
    alone_in,
    cache_sets,
    made_clips,
    plan_pruning,
    probe_files,
    unused_entries,
    verify_cache,
)
from reelora.errors import DataError

from .config import DataConfig
from .listener import Listener

__all__ = ["find_cache", "list_cache", "list_lines", "prune_cache", "pruning_lines", "verify_files"]


def find_cache(folder: Path) -> Path:
    """The cache that a folder is, or that lies in a folder of clips. Raises DataError where there is none."""
    for place in (folder, folder / DataConfig().cache):
        if any((place / name).is_dir() for name in (SETS, MADE)):
            return place
    raise DataError(
        f"{folder}: is no cache of clips and holds none. Give the folder of the clips, or the one that data.cache names; "
        "`reelora precompute` makes it."
    )


def list_cache(folder: Path) -> dict[str, object]:
    """The data sets of a cache, clips of a class, facts of videos, what no data set uses, and manifests that are none."""
    cache = find_cache(folder)
    sets, damaged = cache_sets(cache)
    unused, probes = unused_entries(cache), probe_files(cache)
    return {
        "cache": str(cache),
        "sets": [_row(found) for found in sets],
        "made": [_made_row(found) for found in made_clips(cache)],
        "probe_files": len(probes),
        "probe_bytes": _size(probes),
        "unused_files": len(unused),
        "unused_bytes": _size(unused),
        "damaged": [str(damage.path) for damage in damaged],
    }


def _row(found: CacheSet) -> dict[str, object]:
    return {
        "manifest": str(found.manifest),
        "clips": found.num_clips,
        "buckets": str(found.settings["buckets"]).split(),
        "fps": found.settings["fps"],
        "vae": found.settings["vae_fingerprint"],
        "entries": found.num_entries,
        "bytes": found.size_bytes,
        "last_used": _time(found.used_at),
    }


def _made_row(found: MadeClips) -> dict[str, object]:
    return {
        "folder": str(found.folder),
        "clips": found.num_clips,
        "bytes": found.size_bytes,
        "last_used": _time(found.used_at),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def list_lines(folder: Path) -> list[str]:
    """The same for people, the data set used last at the end."""
    cache = find_cache(folder)
    sets, damaged = cache_sets(cache)
    unused, probes = unused_entries(cache), probe_files(cache)
    return [
        *(_line(found) for found in sets),
        *(_made_line(found) for found in made_clips(cache)),
        f"facts of {len(probes)} videos, {_megabytes(_size(probes))}",
        *(f"damaged: {damage.reason}" for damage in damaged),
        f"{cache}: {len(sets)} data sets; {len(unused)} files ({_megabytes(_size(unused))}) that none of them uses",
    ]


def _line(found: CacheSet) -> str:
    buckets = str(found.settings["buckets"]).split()
    sizes = buckets[0] if len(buckets) == 1 else f"{len(buckets)} possible buckets"
    vae = str(found.settings["vae_fingerprint"])[:8]
    return (
        f"{found.name[:12]}  {found.num_clips} clips of {sizes} at {found.settings['fps']:g} fps, VAE {vae}, "
        f"{found.num_entries} entries, {_megabytes(found.size_bytes)}, used {_minute(found.used_at)}"
    )


def _made_line(found: MadeClips) -> str:
    size, used = _megabytes(found.size_bytes), _minute(found.used_at)
    return f"{found.folder.name[:12]}  {found.num_clips} clips of a class, made by the base, {size}, used {used}"


def _minute(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def verify_files(folder: Path, *, listener: Listener) -> list[Damage]:
    """Every file of a cache whose content is not what was written."""
    return verify_cache(find_cache(folder), on_progress=_progress(listener))


def prune_cache(folder: Path, *, days: float, dry_run: bool, listener: Listener) -> tuple[Pruning, int]:
    """Delete what can go, or only find it; what it is, and its bytes. Raises DataError while the cache is being filled."""
    cache = find_cache(folder)
    with alone_in(cache, to_read=dry_run):
        pruning = plan_pruning(cache, days=days, on_progress=_progress(listener))
        size_bytes = pruning.size_bytes
        if not dry_run:
            pruning.run()
    return pruning, size_bytes


def pruning_lines(pruning: Pruning, size_bytes: int, *, dry_run: bool) -> list[str]:
    """What goes and why."""
    verb = "would go" if dry_run else "deleted"
    return [
        *(f"{file.path}: {file.reason}" for file in pruning.files),
        f"{len(pruning.files)} files or folders {verb}, {_megabytes(size_bytes)}",
    ]


def _progress(listener: Listener) -> OnProgress:
    return lambda done, total, name: listener.progress("verify", done, total)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
