"""What is asked of a model: size, steps, scheduler, guidance, seeds."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reelora.catalog import ModelFacts
from reelora.data import Fit
from reelora.errors import ConfigError, nearest
from reelora.settings import Settings

from .schedulers import LEAST_STEPS, default_scheduler, schedulers_of
from .tasks import Task

__all__ = ["ActsAs", "GenerateConfig", "GuidanceSchedule", "Sampling"]

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _as_seeds(value: object) -> object:
    return (value,) if isinstance(value, int) else value


Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_as_seeds), Field(min_length=1)]
"""Also from a single number."""

Sampling = Literal["diffusers", "sat"]
GuidanceSchedule = Literal["constant", "dynamic", "index"]
ActsAs = Literal["auto", "branches", "fused"]

_EXPONENT = 5
_FIT: Fit = "crop"
_VIDEO_STRENGTH = 0.8

_SAT_STEPS = range(2, 1000)
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"sat": {"guidance_schedule": "dynamic", "scheduler": "dpm"}}
"""What CogVideo's own configs choose, by sampling."""


class GenerateConfig(Settings):
    """How videos are made. What a model does by default is filled in by ``for_model``."""

    negative_prompt: str = ""
    """What guidance leads away from."""
    seed: Seeds = (0,)
    """One number, to which the i-th video (from 0) adds i; or one number for each video."""
    videos_per_prompt: Count = 1
    """Videos of each prompt, every one with a seed of its own."""
    steps: Annotated[int, Field(ge=1, le=1000)]
    """Steps of the scheduler; the model was trained on 1000."""
    scheduler: str
    """CogVideoX: dpm or ddim, with trailing timesteps. Stable Diffusion: ddim, dpm, euler, euler_a, pndm, unipc."""
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """How far each step goes from the negative prompt to the prompt and beyond; 1 is off and halves the work."""
    guidance_schedule: GuidanceSchedule = "constant"
    """dynamic goes up and down between 1 and 1 + guidance, as CogVideo released it; index rises from 1 to 1 + guidance."""
    guidance_exponent: Annotated[int, Field(ge=1, le=9)] = _EXPONENT
    """Of a schedule that is not constant: ``exp`` in SAT's configs."""
    num_frames: Count
    height: Count
    width: Count
    fit: Fit | None = None
    """How a conditioning image or video comes to this size: crop by default."""
    video_strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """Video to video: the share of the steps that is done, from noise of that strength over the video; 0.8 by default."""
    batch_size: Count = 1
    """Videos made at once. More can be faster, and changes the numbers by rounding."""
    adapters_as: ActsAs = "auto"
    """fused adds them into the weights first, branches runs them beside; auto fuses for long work. It changes the rounding."""
    sampling: Sampling = "diffusers"
    """Whose choices are followed from noise to frames; sat is CogVideo's original code."""

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
            "scheduler": default_scheduler(facts),
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
        """Raise ConfigError for a scheduler that the model does not go with, and for frames or a size that it cannot make."""
        if self.scheduler not in (known := schedulers_of(facts)):
            raise ConfigError(f"{facts.name} has no scheduler {self.scheduler!r}: {nearest(self.scheduler, known)}.")
        if self.steps < (least := LEAST_STEPS.get(self.scheduler, 1)):
            raise ConfigError(
                f"steps is {self.steps}, but the scheduler {self.scheduler} needs {least}: take more, or another."
            )
        facts.check_video(num_frames=self.num_frames, height=self.height, width=self.width)

    def check_task(self, task: Task) -> None:
        """Raise ConfigError for settings that have no meaning in a task."""
        if self.video_strength is not None and task != "video-to-video":
            raise ConfigError(f"video_strength is {self.video_strength}, but there is no video to begin with: give one.")
        if self.fit is not None and task not in ("image-to-video", "video-to-video"):
            raise ConfigError(f"fit is {self.fit!r}, but there is neither an image nor a video to fit: leave it out.")
        if self.sampling == "sat" and task not in ("text-to-video", "image-to-video"):
            raise ConfigError(f"sampling is 'sat', which has no {task}: leave sampling out.")
        if self.num_steps(task) < 1:
            raise ConfigError(f"video_strength {self.video_strength} of {self.steps} steps is not one step: raise one of them.")

    def num_steps(self, task: Task) -> int:
        """The steps that are really done."""
        return int(self.steps * self.strength) if task == "video-to-video" else self.steps

    @property
    def strength(self) -> float:
        """``video_strength``, or its default."""
        return _VIDEO_STRENGTH if self.video_strength is None else self.video_strength

    @property
    def fitted(self) -> Fit:
        """``fit``, or its default."""
        return self.fit or _FIT

    @property
    def size(self) -> dict[str, int]:
        """Frames, height and width, by their names."""
        return {"num_frames": self.num_frames, "height": self.height, "width": self.width}

    @property
    def is_guided(self) -> bool:
        """Whether anything is led away from."""
        return self.guidance > 1 or self.guidance_schedule != "constant"

    @property
    def has_negative_prompt(self) -> bool:
        """Whether what is led away from is a prompt."""
        return self.is_guided and self.sampling == "diffusers"

    @property
    def told(self) -> dict[str, Any]:
        """What a file's metadata repeat: every setting that had a say."""
        unset = {name for name in ("fit", "video_strength") if getattr(self, name) is None}
        plain = {"guidance_exponent"} if self.guidance_schedule == "constant" else set()
        return self.model_dump(exclude={*_UNTOLD, *unset, *plain, *(["negative_prompt"] if self.sampling == "sat" else [])})

    def seeds(self, count: int) -> list[int]:
        """One seed for each of ``count`` videos; ConfigError where another number of them was given."""
        if len(self.seed) == 1:
            return [self.seed[0] + index for index in range(count)]
        if len(self.seed) != count:
            raise ConfigError(
                f"There are {len(self.seed)} seeds for {count} videos: give one each, or a single one to count up from."
            )
        return list(self.seed)


def _problems(config: GenerateConfig) -> Iterator[str]:
    if config.guidance_schedule == "constant" and config.guidance_exponent != _EXPONENT:
        yield "guidance_exponent is set, but guidance_schedule is 'constant'; set 'dynamic', or leave the exponent out"


def _sat_problems(config: GenerateConfig) -> Iterator[str]:
    yield from _problems(config)
    if config.negative_prompt:
        yield f"negative_prompt is {config.negative_prompt!r}, but SAT leads away from zeros; leave it out"
    if config.steps not in _SAT_STEPS:
        yield f"steps is {config.steps}, but SAT has schedules of {_SAT_STEPS[0]} to {_SAT_STEPS[-1]} steps"
    if config.num_frames == 1:
        yield "num_frames is 1, but SAT decodes three latent frames or more; make 9 frames, or an image by sampling='diffusers'"


_CHECKS: Mapping[Sampling, Callable[[GenerateConfig], Iterator[str]]] = {"diffusers": _problems, "sat": _sat_problems}
_UNTOLD = ("seed", "videos_per_prompt", "batch_size", "adapters_as")
"""Settings of which the job itself tells what became of them."""
