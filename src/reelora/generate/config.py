"""What is asked of a model: size, steps, guidance, seeds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reelora.catalog import ModelFacts
from reelora.errors import ConfigError
from reelora.settings import Settings

__all__ = ["GenerateConfig", "GuidanceSchedule", "Sampling", "Solver"]

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _as_seeds(value: object) -> object:
    return (value,) if isinstance(value, int) else value


Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_as_seeds), Field(min_length=1)]
"""Also from a single number."""

Sampling = Literal["diffusers", "sat"]
Solver = Literal["dpm", "ddim"]
GuidanceSchedule = Literal["constant", "dynamic"]

_OF_SAT: Mapping[str, Any] = {"solver": "dpm", "guidance_schedule": "constant", "guidance_exponent": 5}
"""Settings that only SAT's sampling has, with the values that the other has too."""

_SAT_STEPS = range(2, 1000)
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"sat": {"guidance_schedule": "dynamic"}}
"""What CogVideo's own configs choose, by sampling."""


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
    sampling: Sampling = "diffusers"
    """Whose choices are followed from noise to frames; sat is CogVideo's original code. The others below are for sat alone."""
    solver: Solver = "dpm"
    """dpm is SDE-DPM-Solver++(2M), ddim draws no noise on its way."""
    guidance_schedule: GuidanceSchedule = "constant"
    """dynamic goes up and down between 1 and 1 + guidance, as CogVideo's own configs do."""
    guidance_exponent: Annotated[int, Field(ge=1, le=9)] = 5
    """Of the dynamic schedule: ``exp`` in SAT's configs."""

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> Self:
        if problems := list(_CHECKS[self.sampling](self)):
            raise ValueError(f"is contradictory: {'; '.join(problems)}")
        return self

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
            **_DEFAULTS.get(str(settings.get("sampling")), {}),
        }
        config = cls.of(defaults | settings, where="generate")
        config.check(facts)
        return config

    def check(self, facts: ModelFacts) -> None:
        """Raise ConfigError where the model cannot make these frames or this size."""
        facts.check_video(num_frames=self.num_frames, height=self.height, width=self.width)

    @property
    def is_guided(self) -> bool:
        """Whether anything is led away from."""
        return self.guidance > 1 or self.guidance_schedule == "dynamic"

    @property
    def has_negative_prompt(self) -> bool:
        """Whether what is led away from is a prompt."""
        return self.is_guided and self.sampling == "diffusers"

    @property
    def told(self) -> dict[str, Any]:
        """What a file's metadata repeat."""
        return self.model_dump(exclude={"seed", "batch_size", *_UNTOLD[self.sampling]})

    def seeds(self, count: int) -> list[int]:
        """One seed for each of ``count`` videos; ConfigError where another number of them was given."""
        if len(self.seed) == 1:
            return [self.seed[0] + index for index in range(count)]
        if len(self.seed) != count:
            raise ConfigError(
                f"There are {len(self.seed)} seeds for {count} videos: give one each, or a single one to count up from."
            )
        return list(self.seed)


def _diffusers_problems(config: GenerateConfig) -> Iterator[str]:
    for name, only in _OF_SAT.items():
        if (value := getattr(config, name)) != only:
            yield f"{name} is {value!r}, which only sampling='sat' has; set that, or leave {name} out"


def _sat_problems(config: GenerateConfig) -> Iterator[str]:
    if config.negative_prompt:
        yield f"negative_prompt is {config.negative_prompt!r}, but SAT leads away from zeros; leave it out"
    if config.steps not in _SAT_STEPS:
        yield f"steps is {config.steps}, but SAT has schedules of {_SAT_STEPS[0]} to {_SAT_STEPS[-1]} steps"
    if config.num_frames == 1:
        yield "num_frames is 1, but SAT decodes three latent frames or more; make 9 frames, or an image by sampling='diffusers'"
    if config.guidance_schedule == "constant" and config.guidance_exponent != _OF_SAT["guidance_exponent"]:
        yield "guidance_exponent is set, but guidance_schedule is 'constant'; set 'dynamic', or leave the exponent out"


_CHECKS: Mapping[Sampling, Callable[[GenerateConfig], Iterator[str]]] = {
    "diffusers": _diffusers_problems,
    "sat": _sat_problems,
}
_UNTOLD: Mapping[Sampling, Iterable[str]] = {"diffusers": _OF_SAT, "sat": ["negative_prompt"]}
"""Settings that have no meaning."""
