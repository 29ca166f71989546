"""What recipes say, on a terminal: lines, one progress bar per task, and Ctrl-C as a wish."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Terminal"]


class Terminal:
    """A listener that prints to stderr, so that stdout holds nothing but the answer; a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:  # else there is nothing to end, and rich would print an empty line
            self._progress.stop()

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self._progress.start()
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        """The first Ctrl-C (or SIGTERM) inside asks the recipe to stop at the next good place, the second ends it at once."""
        is_asked = False

        def ask(number: int, frame: FrameType | None) -> None:
            nonlocal is_asked
            if is_asked:
                raise KeyboardInterrupt
            is_asked = True
            self.say("Stopping after this step; once more to stop at once.")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield lambda: is_asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
