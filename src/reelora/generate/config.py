"""What is asked of a model: size, steps, guidance, seeds."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field

from reelora.catalog import ModelFacts
from reelora.errors import ConfigError
from reelora.settings import Settings

__all__ = ["GenerateConfig"]

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _as_seeds(value: object) -> object:
    return (value,) if isinstance(value, int) else value


Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_as_seeds), Field(min_length=1)]
"""Also from a single number."""


class GenerateConfig(Settings):
    """How videos are made. What a model does by default is filled in by ``for_model``."""

    negative_prompt: str = ""
    """What guidance leads away from."""
    seed: Seeds = (0,)
    """One number, to which the i-th video (from 0) adds i; or one number for each video."""
    steps: Annotated[int, Field(ge=1, le=1000)]
    """Steps of the sampler; the model was trained on 1000."""
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """How far each step goes from the negative prompt to the prompt and beyond; 1 is off and halves the work."""
    num_frames: Count
    height: Count
    width: Count
    batch_size: Count = 1
    """Videos made at once. More can be faster, and changes the numbers by rounding."""

    @classmethod
    def for_model(cls, facts: ModelFacts, **settings: Any) -> Self:
        """The given settings over the model's defaults.

        Raises ConfigError for unknown names (with the nearest), for values that cannot be, and for frames or sizes that
        the model cannot make (with the nearest that it can).
        """
        defaults = {
            "steps": facts.default_steps,
            "guidance": facts.default_guidance,
            "num_frames": facts.default_frames,
            "height": facts.default_height,
            "width": facts.default_width,
        }
        config = cls.of(defaults | settings, where="generate")
        config.check(facts)
        return config

    def check(self, facts: ModelFacts) -> None:
        """Raise ConfigError where the model cannot make these frames or this size."""
        facts.check_video(num_frames=self.num_frames, height=self.height, width=self.width)

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt takes part at all."""
        return self.guidance > 1

    def seeds(self, count: int) -> list[int]:
        """One seed for each of ``count`` videos; ConfigError where another number of them was given."""
        if len(self.seed) == 1:
            return [self.seed[0] + index for index in range(count)]
        if len(self.seed) != count:
            raise ConfigError(
                f"There are {len(self.seed)} seeds for {count} videos: give one each, or a single one to count up from."
            )
        return list(self.seed)
