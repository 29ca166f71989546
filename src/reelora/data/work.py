"""Decoding ahead of the encoder and writing behind it, so that the encoder never waits."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

__all__ = ["Later", "ahead", "behind", "chunks"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")

Later = Callable[[Callable[[], None]], None]
"""Takes work to be done in the background, in order."""

_MOST_WAITING = 8


def ahead(work: Callable[[_In], _Out], items: Iterable[_In], *, num_workers: int, most: int) -> Generator[_Out, None, None]:
    """The results of ``work`` in the order of the items, computed in threads, at most ``most`` of them in advance.

    Threads, since decoding and scaling let go of the interpreter. What was begun is finished, and nothing more is, when the
    iterator is closed.
    """
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    try:
        rest = iter(items)
        waiting = deque(pool.submit(work, item) for item in islice(rest, most))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def behind() -> Iterator[Later]:
    """Do work in one thread, in order; an error of it is raised at the next call or at the end, which waits for all of it."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:

        def later(work: Callable[[], None]) -> None:
            waiting.append(pool.submit(work))
            while len(waiting) > _MOST_WAITING or (waiting and waiting[0].done()):
                waiting.popleft().result()

        yield later
        for future in waiting:
            future.result()


def chunks(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
    """Lists of ``size`` items, the last of which may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
