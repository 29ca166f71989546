"""``sets/HASH.json``: which clip of a data set uses which entries. Written last, so its absence means incomplete.

A manifest is named by the hash of its own text: data sets, sizes and models share one cache and never overwrite each other.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from reelora.errors import DataError, FileFormatError, first_few
from reelora.tensorio import atomic_path

from .plan import Refusal
from .read_only import mark_used
from .reports import ClipReport

__all__ = ["SETS", "EntryRecord", "Manifest", "ManifestClip", "manifests_in", "read_manifest", "write_manifest"]

SETS = "sets"

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestClip(_Row):
    """One clip: its name, captions and repeats, the SHA-256 of its file, the keys of its entries, and what was done to it."""

    name: str
    captions: tuple[str, ...]
    repeats: int
    video: Hash
    latents: Hash
    prompts: tuple[Hash, ...]
    report: ClipReport


class EntryRecord(_Row):
    """What an entry must be: its size as a file, and the fingerprint of its tensors."""

    size_bytes: int
    fingerprint: Hash


class Manifest(_Row):
    """A complete data set. ``settings`` say in words what the keys were made from."""

    version: Literal[2] = 2
    settings: dict[str, str | int | float]
    clips: tuple[ManifestClip, ...]
    refused: tuple[Refusal, ...]
    empty_prompt: Hash
    latents: dict[Hash, EntryRecord]
    prompts: dict[Hash, EntryRecord]

    @model_validator(mode="after")
    def _has_a_record_for_each_key(self) -> "Manifest":
        lost = {clip.latents for clip in self.clips} - set(self.latents)
        lost |= ({key for clip in self.clips for key in clip.prompts} | {self.empty_prompt}) - set(self.prompts)
        bare = [clip.name for clip in self.clips if len(clip.prompts) != len(clip.captions) or not clip.captions]
        if lost or bare or not self.clips:
            raise ValueError(f"{len(lost)} entries have no record, {len(bare)} clips no captions, of {len(self.clips)}")
        return self


def manifests_in(cache: Path) -> list[Path]:
    """The manifests of a cache, the one that was used last at the end."""
    found = (path for path in (cache / SETS).glob("*.json") if not path.name.startswith("."))
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def read_manifest(path: Path) -> tuple[Path, Manifest]:
    """The folder of a cache and a manifest, from the manifest's path, or from the cache's if it holds only one.

    Raises DataError where there is no complete cache or more than one manifest, FileFormatError where one is not ours.
    """
    path = _only_manifest(path) if path.is_dir() else path
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing. {_INCOMPLETE}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise _no_manifest(path, f"{where}: {first['msg']}") from error
    if hashlib.sha256(text).hexdigest() != path.stem:
        raise _no_manifest(path, "its text is not that which was written, SHA-256 differs")
    return path.parent.parent, manifest


_INCOMPLETE = "So there is no complete cache. Run `reelora precompute`: it goes on where it stopped."


def _no_manifest(path: Path, why: str) -> FileFormatError:
    return FileFormatError(
        f"{path}: is no manifest of a cache ({why}). Delete it and run `reelora precompute`; whole entries are kept."
    )


def _only_manifest(cache: Path) -> Path:
    found = manifests_in(cache)
    if not found:
        raise DataError(f"{cache}: holds no data set. {_INCOMPLETE}")
    if len(found) > 1:
        raise DataError(f"{cache}: holds {len(found)} data sets; give the path of one: {first_few([*map(str, found[::-1])])}.")
    return found[0]


def write_manifest(cache: Path, manifest: Manifest) -> Path:
    """Write the manifest of a data set whose entries are all there; one that is there already is only marked as used now."""
    text = manifest.model_dump_json(indent=1).encode() + b"\n"
    path = cache / SETS / f"{hashlib.sha256(text).hexdigest()}.json"
    if path.is_file() and path.read_bytes() == text:
        mark_used(path)
        return path
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(text)
    return path
