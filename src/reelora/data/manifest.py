"""``manifest.json``: which clip of a data set uses which entries. It is written last, so its absence means incomplete."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from reelora.errors import DataError, FileFormatError
from reelora.tensorio import atomic_path

from .entries import entry_files
from .frames import ClipReport
from .survey import Refusal

__all__ = ["MANIFEST", "EntryRecord", "Manifest", "ManifestClip", "read_manifest", "unused_entries", "write_manifest"]

MANIFEST = "manifest.json"

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestClip(_Row):
    """One clip: its name and caption, the SHA-256 of its file, the keys of its entries, and what was done to it."""

    name: str
    caption: str
    video: Hash
    latents: Hash
    prompt: Hash
    report: ClipReport


class EntryRecord(_Row):
    """What an entry must be: its size as a file, and the fingerprint of its tensors."""

    size_bytes: int
    fingerprint: Hash


class Manifest(_Row):
    """A complete cache of one data set. ``settings`` say in words what the keys were made from."""

    version: Literal[1] = 1
    settings: dict[str, str | int | float]
    clips: tuple[ManifestClip, ...]
    refused: tuple[Refusal, ...]
    empty_prompt: Hash
    latents: dict[Hash, EntryRecord]
    prompts: dict[Hash, EntryRecord]

    @model_validator(mode="after")
    def _has_a_record_for_each_key(self) -> "Manifest":
        lost = {clip.latents for clip in self.clips} - set(self.latents)
        lost |= ({clip.prompt for clip in self.clips} | {self.empty_prompt}) - set(self.prompts)
        if lost or not self.clips:
            raise ValueError(f"{len(lost)} entries have no record" if lost else "there are no clips")
        return self


def read_manifest(path: Path) -> tuple[Path, Manifest]:
    """The folder of a cache and its manifest, from either's path.

    Raises DataError where there is no complete cache, and FileFormatError where the manifest is not ours.
    """
    path = path / MANIFEST if path.is_dir() else path
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: is missing, so there is no complete cache. Run `reelora precompute`: it goes on where it stopped."
        ) from error
    try:
        return path.parent, Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise FileFormatError(
            f"{path}: is no manifest of a cache ({where}: {first['msg']}). Delete it and run `reelora precompute`; "
            "whole entries are kept."
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a cache whose entries are all there."""
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def unused_entries(folder: Path) -> list[Path]:
    """Files of a cache that its manifest does not name: entries of other settings or data, and leftovers.

    They are never deleted here; another run may share them. Raises DataError where there is no complete cache.
    """
    folder, manifest = read_manifest(folder)
    used = {f"{key}.safetensors" for key in (*manifest.latents, *manifest.prompts)}
    return [path for path in entry_files(folder) if path.name not in used]
