"""Long work over many modules tells how far it is."""

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

__all__ = ["OnProgress", "watched"]

OnProgress = Callable[[int, int, str], object]
"""Called as ``on_progress(done, total, name)`` after each module."""

K = TypeVar("K", bound=str)


def watched(names: Collection[K], on_progress: OnProgress | None) -> Iterator[K]:
    """The names in turn, each reported when its work is over."""
    for done, name in enumerate(names, start=1):
        yield name
        if on_progress:
            on_progress(done, len(names), name)
