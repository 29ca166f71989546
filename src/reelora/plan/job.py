"""What every job with videos of one size has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from reelora.catalog import ModelFacts

from .costs import Frame

__all__ = ["VideoJob"]


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    """Frames and their size; the model's own by ``for_model``."""

    num_frames: int
    height: int
    width: int

    @classmethod
    def for_model(cls, facts: ModelFacts, **settings: object) -> Self:
        """The given settings over the model's own. Raises ConfigError for a video that the model cannot do."""
        job = cls(**{**cls.defaults(facts), **settings})  # pyright: ignore[reportArgumentType]  (checked by the dataclass)
        facts.check_video(num_frames=job.num_frames, height=job.height, width=job.width)
        return job

    @classmethod
    def defaults(cls, facts: ModelFacts) -> Mapping[str, object]:
        """What the model says where nobody else does, by field."""
        return {"num_frames": facts.default_frames, "height": facts.default_height, "width": facts.default_width}

    @property
    def frame(self) -> Frame:
        return self.num_frames, self.height, self.width
