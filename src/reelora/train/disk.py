"""Room for the files of a run: a folder of its own, and space for the next checkpoint."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from reelora.errors import ConfigError

from .state import State

__all__ = ["has_room", "only_run_in", "size_of"]

_SPARE_BYTES = 64 * 2**20
"""For figures, previews and the report."""


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Nobody else trains in ``folder`` inside the block; ConfigError where somebody does. A kill frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        with lock:
            yield
    except Timeout as error:
        raise ConfigError(
            f"{folder} is in use by another run: wait for its end, or name another folder with --output."
        ) from error


def size_of(state: State) -> int:
    """Bytes of a checkpoint of this state."""
    return sum(tensor.nbytes for tensor in state[0].values())


def has_room(folder: Path, size: int) -> bool:
    """Whether the disk of ``folder`` takes one more checkpoint of ``size`` bytes and the small files beside it."""
    return shutil.disk_usage(folder).free > size + _SPARE_BYTES
