"""Entries of the cache: one safetensors file per clip or caption, named by a hash of all that it was made from."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from reelora.errors import DataError, FileFormatError
from reelora.tensorio import TensorStore, fingerprint, open_tensors, write_tensors

from .frames import ClipSettings
from .pieces import HEAD, ClipChoice, Piece
from .probe import Probe

__all__ = [
    "IMAGES",
    "KINDS",
    "LATENTS",
    "PROMPTS",
    "CacheSettings",
    "EntryKind",
    "Facts",
    "clip_of_image",
    "entry_files",
    "facts_of_image",
    "find_entry",
    "key_of",
    "read_entry",
    "read_whole_entry",
    "write_entry",
]

_CODE_VERSION = 3
"""Raise it when decoding, encoding or storing changes what an entry holds: every key then changes, no old entry is taken.

``tests/data/test_code_version.py`` fails where that is forgotten.
"""

Facts = Mapping[str, object]
"""All that decides what an entry holds, in words and numbers; stored with it, and hashed into its name."""


@dataclass(frozen=True, kw_only=True)
class EntryKind:
    """A subfolder of the cache, and the axes of the tensors that its entries hold."""

    folder: str
    tensors: Mapping[str, str]
    """In every entry."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """In entries of some models."""

    def axes_of(self, names: Iterable[str]) -> dict[str, str]:
        """The axes of what an entry with tensors of these names must hold."""
        return {**self.tensors, **{name: axes for name, axes in self.optional.items() if name in names}}

    def path(self, cache: Path, key: str) -> Path:
        return cache / self.folder / f"{key}.safetensors"


LATENTS = EntryKind(folder="latents", tensors={"latent_mean": "f c h w", "latent_std": "f c h w"})
PROMPTS = EntryKind(folder="prompts", tensors={"prompt_states": "s d"}, optional={"pooled": "d"})
IMAGES = EntryKind(folder="images", tensors={"image_latents": "n c h w"})
KINDS = (LATENTS, PROMPTS, IMAGES)


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """All that decides what an entry holds, besides the video and the caption themselves.

    The fingerprints stand for the encoders' weights and configs, ``dtype`` for how results are stored.
    """

    clip: ClipSettings
    """What clips are made into; the first bucket."""
    sizes: tuple[tuple[int, int, int], ...] = ()
    """Frames, height and width of further buckets."""
    choice: ClipChoice = HEAD
    vae_fingerprint: str
    text_fingerprint: str
    """Of everything that turns a caption into states."""
    num_text_tokens: int
    dtype: torch.dtype = torch.float32

    @property
    def buckets(self) -> tuple[ClipSettings, ...]:
        """Every size that a clip may have, each once."""
        more = (replace(self.clip, num_frames=t, height=h, width=w) for t, h, w in self.sizes)
        return tuple(dict.fromkeys((self.clip, *more)))

    def latents_facts(self, video_hash: str, piece: Piece, probe: Probe) -> Facts:
        """What decides the entry of a piece of a video, given by the SHA-256 of its bytes."""
        return _facts(
            kind="latents", video=video_hash, piece=piece.facts(probe), encoder=self.vae_fingerprint, dtype=str(self.dtype)
        )

    def prompt_facts(self, caption: str) -> Facts:
        """What decides the entry of a caption."""
        tokens, encoder = self.num_text_tokens, self.text_fingerprint
        return _facts(kind="prompt", caption=caption, tokens=tokens, encoder=encoder, dtype=str(self.dtype))


def facts_of_image(latents: str, *, draws: int, seed: int) -> Facts:
    """What decides the noisy latents of a clip's first picture; ``latents`` is the key of its own, which says the rest."""
    return _facts(kind="image", latents=latents, draws=draws, seed=seed)


def clip_of_image(store: TensorStore) -> str:
    """The key of the clip's latents that an entry of draws belongs to."""
    return str(json.loads(store.metadata["facts"])["latents"])


def _facts(**facts: object) -> Facts:
    return {"version": _CODE_VERSION, **facts}


def key_of(facts: Facts) -> str:
    """Name of the entry that facts decide: SHA-256 in hex."""
    return hashlib.sha256(_said(facts).encode()).hexdigest()


def _said(facts: Facts) -> str:
    return json.dumps(facts, sort_keys=True)


def write_entry(cache: Path, kind: EntryKind, facts: Facts, tensors: Mapping[str, Tensor]) -> None:
    """Write an entry that appears whole or not at all, with its facts and the hash of its content."""
    metadata = {"key": key_of(facts), "facts": _said(facts), "fingerprint": fingerprint(tensors)}
    write_tensors(kind.path(cache, key_of(facts)), tensors, metadata=metadata)


def find_entry(cache: Path, kind: EntryKind, key: str, *, is_read_whole: bool = False) -> TensorStore | None:
    """The entry if it is there and whole; None where it is missing, truncated or not what its name says.

    Its values are compared with their hash only if it ``is_read_whole``.
    """
    try:
        return read_whole_entry(cache, kind, key) if is_read_whole else read_entry(cache, kind, key)
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
    wanted = {name: len(axes.split()) for name, axes in kind.axes_of(ranks).items()}
    said = store.metadata.get("facts", "")
    is_named = store.metadata.get("key") == key == hashlib.sha256(said.encode()).hexdigest()
    if ranks != wanted or not is_named or "fingerprint" not in store.metadata:
        raise DataError(f"{path}: is no entry of the cache with this name. Delete it and run `reelora precompute` again.")
    return store


def read_whole_entry(cache: Path, kind: EntryKind, key: str) -> TensorStore:
    """``read_entry`` after every byte was compared with the hash that was stored. Raises DataError where they differ."""
    store = read_entry(cache, kind, key)
    if fingerprint(store) != store.metadata["fingerprint"]:
        raise DataError(
            f"{kind.path(cache, key)}: is damaged: its values are not those that were written (SHA-256 differs). "
            "Run `reelora precompute` again: it makes this entry anew."
        )
    return store


def entry_files(cache: Path) -> Iterator[tuple[EntryKind, Path]]:
    """Every file in the folders of entries, also those that a killed process left half written."""
    for kind in KINDS:
        folder = cache / kind.folder
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file():
                yield kind, path
