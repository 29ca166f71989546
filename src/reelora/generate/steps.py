"""The way from one denoising step to the next: progress outward, a wish to stop inward."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reelora.errors import ReeloraError

__all__ = ["OnStep", "ShouldStop", "StepWatch", "StoppedError", "ignore_step", "never_stop"]

OnStep = Callable[[int, int], None]
"""Called with the number of steps done and the number in all, over all videos of a call."""

ShouldStop = Callable[[], bool]


class StoppedError(ReeloraError):
    """``should_stop`` said so between two steps; the model is as it was, and the unfinished videos do not exist."""


def ignore_step(step: int, total: int) -> None:
    """For callers that want no progress."""


def never_stop() -> bool:
    """For callers that never stop."""
    return False


@dataclass(kw_only=True)
class StepWatch:
    """Counts steps over all batches of a call."""

    total: int
    on_step: OnStep
    should_stop: ShouldStop
    done: int = field(default=0, init=False)

    def check(self) -> None:
        """Raise StoppedError if that is wanted."""
        if self.should_stop():
            raise StoppedError(f"Stopped on request after {self.done} of {self.total} steps.")

    def after_step(self) -> None:
        """Count one step, and tell of it; StoppedError if that is wanted and it was not the last one."""
        self.done += 1
        self.on_step(self.done, self.total)
        if self.done < self.total:
            self.check()

    def after_pipeline_step(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The same as a diffusers ``callback_on_step_end``."""
        self.after_step()
        return tensors
