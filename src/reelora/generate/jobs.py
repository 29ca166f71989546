"""One video that is to be made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reelora.errors import ConfigError
from reelora.shapes import FramesU8

from .config import GenerateConfig
from .sources import Source
from .tasks import Task
from .uses import AdapterUse, uses_key

__all__ = ["Job"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One video: checked and read, so that nothing but the work itself is left. ``Session.job`` makes them."""

    prompt: str
    seed: int
    config: GenerateConfig
    """Its ``seed`` is not looked at."""
    task: Task
    uses: tuple[AdapterUse, ...] = ()
    source: Source | None = None
    """The image or the video that it begins with."""
    is_fused: bool = False
    """Whether its adapters are added into the weights."""
    notes: tuple[str, ...] = field(default=())
    tiles: bool | None = None
    """Whether its frames are decoded in tiles, where a plan says so; else it follows from their size."""
    changed_by_plan: Mapping[str, Any] = field(default_factory=dict)
    """What else a plan does that changes numbers."""

    @property
    def group(self) -> tuple[object, ...]:
        """What jobs have in common that run one after the other without a change of the model."""
        return uses_key(self.uses), self.is_fused

    @property
    def batch(self) -> tuple[object, ...]:
        """What jobs have in common that may share a batch."""
        return self.task, self.config.model_copy(update={"seed": (0,)})

    @property
    def texts(self) -> tuple[str, ...]:
        """What a text encoder has to read: the prompt, and what guidance leads away from."""
        return (self.prompt, self.config.negative_prompt) if self.config.has_negative_prompt else (self.prompt,)

    @property
    def num_steps(self) -> int:
        """The steps that are really done."""
        return self.config.num_steps(self.task)

    def source_frames(self) -> FramesU8:
        """The frames it begins with, in its own size."""
        if self.source is None:
            raise ConfigError(f"{self.task} needs an image or a video to begin with.")
        return self.source.fitted(height=self.config.height, width=self.config.width, mode=self.config.fitted)

    @property
    def description(self) -> dict[str, Any]:
        """What of it belongs into a file's metadata; the model is the session's to tell."""
        inputs = {} if self.source is None else {_INPUT[self.task]: self.source.description, "fit": self.config.fitted}
        strength = {"video_strength": self.config.strength} if self.task == "video-to-video" else {}
        acts = {"adapters_as": "fused" if self.is_fused else "branches"} if self.uses else {}
        told = {"task": self.task, **self.config.told, **inputs, **strength, "prompt": self.prompt, "seed": self.seed}
        return {**told, "adapters": [use.description for use in self.uses], **acts, **self.changed_by_plan}


_INPUT = {"image-to-video": "image", "video-to-video": "video"}
