"""Which clips make up a batch: a pure function of the seed and the step."""

import hashlib
from functools import lru_cache

from reelora.errors import ConfigError

__all__ = ["batch_indices", "shuffled"]


def batch_indices(step: int, *, batch_size: int, num_clips: int, seed: int) -> list[int]:
    """The clips of one step: the next ``batch_size`` of an endless row of permutations, one per epoch.

    Clip number ``p = step * batch_size + j`` of a run is ``permutation(seed, p // num_clips)[p % num_clips]``. There
    is no state, so a run that resumes at any step goes on exactly. Nothing is left over: a batch may take the last
    clips of one epoch and the first of the next, and a batch larger than the data set takes clips again. The result
    depends on no library's random numbers. Raises ConfigError for counts that are not positive.
    """
    wrongs = {"step": step < 0, "batch_size": batch_size < 1, "num_clips": num_clips < 1}
    if any(wrongs.values()):
        names = ", ".join(name for name, is_wrong in wrongs.items() if is_wrong)
        raise ConfigError(f"{names} too small: step is at least 0, batch_size and num_clips at least 1.")
    places = range(step * batch_size, (step + 1) * batch_size)
    return [_permutation(seed, place // num_clips, num_clips)[place % num_clips] for place in places]


def shuffled(names: list[str], *, seed: int) -> list[str]:
    """Names in an order drawn by each one's own hash, so that one name more leaves the order of the others alone."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_clips: int) -> tuple[int, ...]:
    return tuple(map(int, shuffled([str(index) for index in range(num_clips)], seed=_epoch_seed(seed, epoch))))


def _epoch_seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big")
