"""One video of a call."""

from dataclasses import dataclass

__all__ = ["Job"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video."""

    prompt: str
    seed: int
