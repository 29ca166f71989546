"""A cache on a disk, or in a folder, that takes no files: what is complete in it can be used all the same."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["if_writable", "is_read_only", "mark_used"]

_REFUSALS = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))


def is_read_only(error: OSError) -> bool:
    """Whether something was not written because the disk or the rights of its folder do not allow it."""
    return error.errno in _REFUSALS


@contextmanager
def if_writable() -> Iterator[None]:
    """What saves time later, and is left out where nothing may be written. Any other OSError is raised."""
    try:
        yield
    except OSError as error:
        if not is_read_only(error):
            raise


def mark_used(path: Path) -> None:
    """Make now the time at which a file of a cache was used last, which `cache prune` goes by."""
    with if_writable():
        os.utime(path)
