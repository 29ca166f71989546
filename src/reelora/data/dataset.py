"""A complete cache as a data set: mapped, never loaded as a whole, split and hashed by content."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from reelora.errors import ConfigError, DataError, first_few
from reelora.tensorio import fingerprint

from .entries import LATENTS, PROMPTS, EntryKind, read_entry
from .manifest import EntryRecord, ManifestClip, read_manifest
from .memory import EntryMemory
from .reports import ClipReport
from .sampling import shuffled

__all__ = ["CachedClip", "CachedClips"]

ClipLatents = Float[Tensor, "f c h w"]
"""Latents of one clip in the order that CogVideoX's transformer takes them."""

TokenStates = Float[Tensor, "s d"]
"""Prompt states of one caption."""


PooledState = Float[Tensor, " d"]
"""One state for a whole caption, as SDXL is told it."""


class CachedClip(TypedDict):
    """One clip as the training takes it. ``source`` is its name in the data set's folder."""

    latent_mean: ClipLatents
    latent_std: ClipLatents
    prompt_states: TokenStates
    caption: str
    source: str


class CachedClips:
    """The clips of a data set that ``precompute`` made, in the order of its manifest.

    ``path`` is the manifest, or the cache's folder if it holds only one. Tensors are views of mapped files, which cost memory
    only while they are used, until ``memory`` is told to hold them; nobody may write into them. The values of an entry are
    compared with their hash when it is first read. Raises DataError where the cache is incomplete, or entries are missing,
    truncated or damaged, and names them; FileFormatError where the manifest is not one.
    """

    def __init__(self, path: Path) -> None:
        self.folder, self._manifest = read_manifest(Path(path))
        self._clips = self._manifest.clips
        self.memory = EntryMemory(self.folder)
        """What reads the entries, and holds them where it is told to; parts of one data set share it."""
        self._check_sizes()

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> CachedClip:
        return self.read(index)

    def read(self, index: int, *, caption: int = 0) -> CachedClip:
        """A clip with the first of its captions, or that of the number that a ``Visit`` gives."""
        clip = self._clips[index]
        latents = self._entry(LATENTS, clip.latents, self._manifest.latents)
        return CachedClip(
            latent_mean=latents["latent_mean"],
            latent_std=latents["latent_std"],
            prompt_states=self._prompt_states(clip.prompts[caption]),
            caption=clip.captions[caption],
            source=clip.name,
        )

    def __iter__(self) -> Iterator[CachedClip]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"CachedClips({str(self.folder)!r}, {len(self)} clips)"

    @property
    def captions(self) -> list[str]:
        """The first caption of every clip."""
        return [clip.captions[0] for clip in self._clips]

    @property
    def all_captions(self) -> list[str]:
        """Every caption of every clip, each once."""
        return list(dict.fromkeys(caption for clip in self._clips for caption in clip.captions))

    @property
    def num_captions(self) -> list[int]:
        """How many captions every clip has."""
        return [len(clip.captions) for clip in self._clips]

    @property
    def repeats(self) -> list[int]:
        """How often every clip is seen in an epoch."""
        return [clip.repeats for clip in self._clips]

    @property
    def buckets(self) -> list[str]:
        """Frames, height and width of every clip, as ``49x480x720``: clips of one bucket can be stacked."""
        return [clip.report.size for clip in self._clips]

    @property
    def sources(self) -> list[str]:
        """The name of every clip in the data set's folder; a piece of a video also says where it begins."""
        return [clip.name for clip in self._clips]

    @property
    def latents_keys(self) -> dict[str, str]:
        """By a clip's name what its latents are called in the cache, which says all that decides its pixels."""
        return {clip.name: clip.latents for clip in self._clips}

    @property
    def reports(self) -> list[ClipReport]:
        """What every clip's video is, and what was done to it."""
        return [clip.report for clip in self._clips]

    @property
    def settings(self) -> dict[str, str | int | float]:
        """What the cache was made with: frames, size, fps, encoders' fingerprints, number of tokens, dtype."""
        return dict(self._manifest.settings)

    @property
    def empty_prompt_states(self) -> TokenStates:
        """Prompt states of "", for caption dropout and guidance."""
        return self._prompt_states(self._manifest.empty_prompt)

    @property
    def data_hash(self) -> str:
        """SHA-256 in hex over the contents of all entries in their order: equal exactly for equal training data."""
        contents = [self._content(clip) for clip in self._clips]
        empty = self._manifest.prompts[self._manifest.empty_prompt].fingerprint
        return hashlib.sha256(json.dumps([empty, contents]).encode()).hexdigest()

    def split(self, held_out: int | float, *, seed: int) -> tuple["CachedClips", "CachedClips"]:
        """The clips to train on and those held out: a count if ``held_out`` is an int, a share if it is a float.

        Videos are drawn by the hash of their bytes and of ``seed``: names, order and captions do not matter, copies
        of one video stay on one side, and a clip more in the data set leaves the others' order alone. A share above
        0 holds out at least one. Raises ConfigError unless a video is left to train on.
        """
        videos = shuffled(sorted({clip.video for clip in self._clips}), seed=seed)
        count = held_out if isinstance(held_out, int) else _count_of_share(held_out, len(videos))
        if not 0 <= count < len(videos):
            raise ConfigError(
                f"{held_out} of {len(videos)} different videos cannot be held out: at least one must be left to train on. "
                f"Set data.held_out to at most {len(videos) - 1}, or add clips."
            )
        drawn = set(videos[:count])
        return self._those(lambda clip: clip.video not in drawn), self._those(lambda clip: clip.video in drawn)

    def verify(self) -> list[Path]:
        """Read every entry and compare its content with the manifest; the paths of those that differ."""
        return [kind.path(self.folder, key) for kind, key, record in self._entries() if not self._is_whole(kind, key, record)]

    def _content(self, clip: ManifestClip) -> list[object]:
        latents, prompts = self._manifest.latents, self._manifest.prompts
        return [latents[clip.latents].fingerprint, [prompts[key].fingerprint for key in clip.prompts], clip.repeats]

    def _those(self, is_wanted: Callable[[ManifestClip], bool]) -> "CachedClips":
        other = copy(self)
        other._clips = tuple(clip for clip in self._clips if is_wanted(clip))
        return other

    def micro_conditions(self) -> dict[str, tuple[int, int, int, int, int, int]]:
        """By a clip's name what SDXL is told of its size: see ``ClipReport.micro_conditions``."""
        return {clip.name: clip.report.micro_conditions for clip in self._clips}

    def pooled_states(self) -> dict[str, PooledState]:
        """The pooled state of every caption and of "". Raises DataError for a cache of a model that has none."""
        clips = self._clips
        keys = {caption: key for clip in clips for caption, key in zip(clip.captions, clip.prompts, strict=True)}
        return {caption: self._pooled_state(key) for caption, key in {"": self._manifest.empty_prompt, **keys}.items()}

    def _pooled_state(self, key: str) -> PooledState:
        entry = self._entry(PROMPTS, key, self._manifest.prompts)
        if "pooled" not in entry:
            raise DataError(f"{PROMPTS.path(self.folder, key)}: holds no pooled state: it was made for another model.")
        return entry["pooled"].clone()  # a view would hold one mapped file for each caption

    def _prompt_states(self, key: str) -> TokenStates:
        return self._entry(PROMPTS, key, self._manifest.prompts)["prompt_states"]

    def _entry(self, kind: EntryKind, key: str, records: Mapping[str, EntryRecord]) -> Mapping[str, Tensor]:
        return self.memory.read(kind, key, fingerprint=records[key].fingerprint)

    def _entries(self) -> list[tuple[EntryKind, str, EntryRecord]]:
        manifest = self._manifest
        latents = [(LATENTS, key, record) for key, record in manifest.latents.items()]
        return latents + [(PROMPTS, key, record) for key, record in manifest.prompts.items()]

    def _is_whole(self, kind: EntryKind, key: str, record: EntryRecord) -> bool:
        try:
            return fingerprint(read_entry(self.folder, kind, key)) == record.fingerprint
        except DataError:
            return False

    def _check_sizes(self) -> None:
        sizes = {kind.path(self.folder, key): record.size_bytes for kind, key, record in self._entries()}
        lost = [str(path) for path in sizes if not path.is_file()]
        cut = [str(path) for path, size in sizes.items() if path.is_file() and path.stat().st_size != size]
        wrongs = {"are missing": lost, "are truncated or replaced": cut}
        problems = [f"{len(bad)} {what}, first {first_few(bad)}" for what, bad in wrongs.items() if bad]
        if problems:
            raise DataError(
                f"{self.folder}: of {len(sizes)} entries {'; '.join(problems)}. "
                "Run `reelora precompute` again: it makes only these."
            )


def _count_of_share(share: float, total: int) -> int:
    if not 0 <= share < 1:
        raise ConfigError(f"A share of {share} cannot be held out: it lies in 0 to 1, 1 excluded. Give a count as an int.")
    return max(1, round(share * total)) if share > 0 else 0
