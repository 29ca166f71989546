"""What is wanted, video by video, before anything is looked up or read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Order"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """One video."""

    prompt: str
    seed: int | None = None
    """None counts up from the seed of the call."""
    adapters: tuple[str, ...] = ()
    """``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]`` each."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """Over those, by file."""
    image: str | None = None
    video: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of GenerateConfig, over the model's defaults."""
    output: str | None = None
    """Name of its file; None numbers that of the call."""
