"""Batches that are there before they are asked for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from .config import LoopConfig
from .team import Team

__all__ = ["ReadAhead", "passes_ahead", "room_for_clips"]

Item = TypeVar("Item")

_LEAST, _MOST = 2, 16
"""Batches that are read ahead."""

_SHARE_OF_HOST, _SHARE_BESIDE_DEVICE = 0.1, 0.5
"""Of the host's free memory that clips may take: where the model computes there too, and where it does not."""


class ReadAhead(Generic[Item]):
    """Batches by the number of their forward pass, read in a thread while others are computed.

    This process makes every ``stride``-th pass, and the next ``depth`` of them are read before they are asked for.
    """

    def __init__(self, read: Callable[[int], Item], *, stride: int, depth: int) -> None:
        self._read, self._stride, self._depth = read, stride, depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._pending: dict[int, Future[Item]] = {}

    def read(self, forward: int) -> Item:
        """The batch of pass ``forward``; waits for it only where the passes before did not leave time enough to read it."""
        wanted = range(forward, forward + (self._depth + 1) * self._stride, self._stride)
        for number in self._pending.keys() - set(wanted):
            self._pending.pop(number).cancel()
        for number in wanted:
            if number not in self._pending:
                self._pending[number] = self._pool.submit(self._read, number)
        return self._pending.pop(forward).result()

    def close(self) -> None:
        """Forget what was read ahead."""
        self._pool.shutdown(cancel_futures=True)


def passes_ahead(config: LoopConfig, team: Team) -> int:
    """Batches to read ahead: as many as this process takes in a step, so that a slow one may take as long as that."""
    return min(max(config.gradient_accumulation // team.size, _LEAST), _MOST)


def room_for_clips(free: int, team: Team) -> int:
    """Bytes of the host's memory that clips may take in each process of a team, of those that are ``free``."""
    share = _SHARE_OF_HOST if team.device.type == "cpu" else _SHARE_BESIDE_DEVICE
    return int(share * free) // team.size
