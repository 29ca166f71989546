"""What is in memory while a recipe works."""

from collections.abc import Callable
from typing import Any

from reelora.recipes import Silent

__all__ = ["Watching"]


class Watching(Silent):
    """A listener that looks at what is in memory while the steps are made."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self._look = look
        self.found: list[Any] = []

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        if task == "train":
            self.found.append(self._look())
