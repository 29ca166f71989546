"""Which clips, with which captions, make up each batch: a pure function of the data set, the seed and the place in the run."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from reelora.errors import ConfigError

from .sampling import batch_indices, shuffled

__all__ = ["BatchPlan", "Visit"]


class Visited(Protocol):
    """What a plan needs to know of a data set, clip by clip; ``CachedClips`` says it."""

    @property
    def sources(self) -> list[str]: ...
    @property
    def buckets(self) -> list[str]: ...
    @property
    def repeats(self) -> list[int]: ...
    @property
    def num_captions(self) -> list[int]: ...


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One look at one clip: ``clips.read(visit.index, caption=visit.caption)``."""

    index: int
    caption: int


class BatchPlan:
    """Batches of clips of one bucket each, so that they can be stacked, without state and without leftovers.

    Each bucket is an endless row of permutations of its clips, one per epoch, in which a clip stands as often as it is
    repeated; its batches cut this row, so that one may take the last clips of an epoch and the first of the next. In an
    epoch of the run every bucket gives those of its batches that begin in it, in an order of buckets that is drawn anew.
    So over a run each clip is seen exactly as often as its repeats say, and with each of its captions equally often. A
    bucket smaller than a batch gives its clips more than once in one (``small_buckets`` names them). With one bucket
    and no repeats the batches are those of ``batch_indices``.

    Raises ConfigError for an empty data set and for a batch size that is not positive.
    """

    def __init__(self, clips: Visited, *, batch_size: int, seed: int) -> None:
        if batch_size < 1 or not clips.sources:
            raise ConfigError(f"Batches of {batch_size} out of {len(clips.sources)} clips: both must be at least 1.")
        self._batch_size, self._seed = batch_size, seed
        self._num_captions = clips.num_captions
        self._offsets = [_drawn(seed, name) for name in clips.sources]
        self._rows = _rows(clips.buckets, clips.repeats)

    @property
    def buckets(self) -> dict[str, int]:
        """Visits in an epoch of each bucket."""
        return {name: len(row) for name, row in self._rows.items()}

    @property
    def small_buckets(self) -> list[str]:
        """Buckets with fewer visits in an epoch than a batch has clips."""
        return [name for name, count in self.buckets.items() if count < self._batch_size]

    @property
    def visits_per_epoch(self) -> int:
        """Visits of all clips in an epoch, repeats counted."""
        return sum(self.buckets.values())

    def begun(self, epoch: int) -> int:
        """Batches that begin before an epoch does: the number of its first one."""
        return sum(self._begun(name, epoch) for name in self._rows)

    def epoch_of(self, batch: int) -> int:
        """The epoch in which a batch begins."""
        guess = batch * self._batch_size // self.visits_per_epoch
        # Each bucket rounds up by less than one batch an epoch, so the guess is at most that much too late.
        first = max(0, guess - len(self._rows) * self._batch_size // self.visits_per_epoch - 1)
        candidates = range(first, guess + 2)
        return first + bisect_right(candidates, batch, key=self.begun) - 1

    def at(self, batch: int) -> list[Visit]:
        """The visits of a batch, from 0 on; they are of one bucket."""
        epoch = self.epoch_of(batch)
        order = _order(self._counts(epoch), self._seed, epoch)
        place = batch - self.begun(epoch)
        name = order[place]
        number = self._begun(name, epoch) + order[:place].count(name)
        row = self._rows[name]
        slots = batch_indices(number, batch_size=self._batch_size, num_clips=len(row), seed=self._seed)
        epochs = (visit // len(row) for visit in range(number * self._batch_size, (number + 1) * self._batch_size))
        return [self._visit(row[slot], epoch_of_row) for slot, epoch_of_row in zip(slots, epochs, strict=True)]

    def bucket_at(self, batch: int) -> str:
        """The bucket of a batch."""
        epoch = self.epoch_of(batch)
        return _order(self._counts(epoch), self._seed, epoch)[batch - self.begun(epoch)]

    def _visit(self, slot: "_Slot", epoch: int) -> Visit:
        turn = self._offsets[slot.index] + epoch * slot.repeats + slot.repeat
        return Visit(index=slot.index, caption=turn % self._num_captions[slot.index])

    def _begun(self, name: str, epoch: int) -> int:
        return -(-epoch * len(self._rows[name]) // self._batch_size)

    def _counts(self, epoch: int) -> tuple[tuple[str, int], ...]:
        return tuple((name, self._begun(name, epoch + 1) - self._begun(name, epoch)) for name in self._rows)


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """One of the visits that a clip gets in an epoch."""

    index: int
    repeat: int
    repeats: int


def _rows(buckets: Sequence[str], repeats: Sequence[int]) -> dict[str, list[_Slot]]:
    rows: dict[str, list[_Slot]] = {name: [] for name in sorted(set(buckets))}
    for index, (name, count) in enumerate(zip(buckets, repeats, strict=True)):
        rows[name] += [_Slot(index=index, repeat=repeat, repeats=count) for repeat in range(count)]
    return rows


@lru_cache(maxsize=4)
def _order(counts: tuple[tuple[str, int], ...], seed: int, epoch: int) -> tuple[str, ...]:
    """The buckets of an epoch's batches, shuffled."""
    labels = [f"{name}#{number}" for name, count in counts for number in range(count)]
    return tuple(label.partition("#")[0] for label in shuffled(labels, seed=_drawn(seed, f"buckets of {epoch}")))


def _drawn(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:6], "big")
