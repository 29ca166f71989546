"""How a recipe tells its caller what it is doing."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["Listener", "Silent", "StopsOnly", "counted"]


class Listener(Protocol):
    """Takes what a recipe says; the command line prints it, a server may store it."""

    def say(self, line: str) -> None:
        """One line for people."""
        ...

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` units of ``task``; the first call with a new task begins it."""
        ...

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        """Work that can stop at good places: inside, Ctrl-C is a wish, and the function says whether it was made."""
        ...


class StopsOnly:
    """What the other processes of a team listen with: they say nothing, and can be stopped as the first one can."""

    def __init__(self, listener: Listener) -> None:
        self.stopping = listener.stopping

    def say(self, line: str) -> None:
        pass

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        pass


class Silent:
    """A listener for callers that want none."""

    def say(self, line: str) -> None:
        pass

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        pass

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        return nullcontext(lambda: False)


def counted(listener: Listener, task: str, total: int) -> Callable[[], None]:
    """Called after each of ``total`` units of a task, it tells the listener how many are done."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        listener.progress(task, done, total)

    return count
