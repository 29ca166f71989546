"""Entries of the cache: one safetensors file per clip or caption, named by a hash of all that it was made from."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from reelora.errors import DataError, FileFormatError
from reelora.tensorio import TensorStore, fingerprint, open_tensors, write_tensors

from .frames import ClipSettings

__all__ = ["LATENTS", "PROMPTS", "CacheSettings", "EntryKind", "entry_files", "find_entry", "read_entry", "write_entry"]

_CODE_VERSION = 1
"""Raise it when decoding or storing changes what an entry holds: every key then changes, and no old entry is taken."""


@dataclass(frozen=True, kw_only=True)
class EntryKind:
    """A subfolder of the cache, and the axes of the tensors that each of its entries holds."""

    folder: str
    tensors: Mapping[str, str]
    note: str
    """The key of its metadata that says in words what it was made from."""

    def path(self, cache: Path, key: str) -> Path:
        return cache / self.folder / f"{key}.safetensors"


LATENTS = EntryKind(folder="latents", tensors={"latent_mean": "f c h w", "latent_std": "f c h w"}, note="report")
PROMPTS = EntryKind(folder="prompts", tensors={"prompt_states": "s d"}, note="caption")


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """All that decides what an entry holds, besides the video and the caption themselves.

    The fingerprints stand for the encoders' weights and configs, ``dtype`` for how results are stored.
    """

    clip: ClipSettings
    vae_fingerprint: str
    text_fingerprint: str
    num_text_tokens: int
    dtype: torch.dtype = torch.float32

    def latents_key(self, video_hash: str) -> str:
        """Name of the entry of a video, from the SHA-256 of its bytes."""
        # min_share only decides whether a clip is used at all.
        shape = {name: value for name, value in asdict(self.clip).items() if name != "min_share"}
        shape["fps"] = float(self.clip.fps)
        return _key(kind="latents", video=video_hash, clip=shape, encoder=self.vae_fingerprint, dtype=str(self.dtype))

    def prompt_key(self, caption: str) -> str:
        """Name of the entry of a caption."""
        tokens = self.num_text_tokens
        return _key(kind="prompt", caption=caption, tokens=tokens, encoder=self.text_fingerprint, dtype=str(self.dtype))


def write_entry(cache: Path, kind: EntryKind, key: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write an entry that appears whole or not at all, with its own key and the hash of its content."""
    write_tensors(kind.path(cache, key), tensors, metadata={**notes, "key": key, "fingerprint": fingerprint(tensors)})


def find_entry(cache: Path, kind: EntryKind, key: str) -> TensorStore | None:
    """The entry if it is there and whole; None where it is missing, truncated or not what its name says."""
    try:
        return read_entry(cache, kind, key)
    except DataError:
        return None


def read_entry(cache: Path, kind: EntryKind, key: str) -> TensorStore:
    """Map an entry. Raises DataError where it is missing, truncated or not what its name says."""
    path = kind.path(cache, key)
    try:
        store = open_tensors(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: this entry of the cache is missing. Run `reelora precompute` again.") from error
    except FileFormatError as error:
        raise DataError(f"{error} Run `reelora precompute` again: it makes this entry anew.") from error
    ranks = {name: len(shape) for name, shape in store.shapes.items()}
    wanted = {name: len(axes.split()) for name, axes in kind.tensors.items()}
    if ranks != wanted or store.metadata.get("key") != key or not {"fingerprint", kind.note} <= set(store.metadata):
        raise DataError(f"{path}: is no entry of the cache with this name. Delete it and run `reelora precompute` again.")
    return store


def entry_files(cache: Path) -> Iterator[Path]:
    """Every file in the folders of entries, also those that a killed process left half written."""
    for kind in (LATENTS, PROMPTS):
        folder = cache / kind.folder
        yield from sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ()


def _key(**facts: object) -> str:
    return hashlib.sha256(json.dumps({"version": _CODE_VERSION, **facts}, sort_keys=True).encode()).hexdigest()
