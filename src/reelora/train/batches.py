"""What the model sees at each step: a pure function of the run's seed and the place in the run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.components import padded_in_front
from reelora.data import BatchPlan, CachedClip, CachedClips, Visit
from reelora.errors import ConfigError
from reelora.shapes import Latents, PromptStates

from .conditioning import Condition, Look, extras_of
from .config import LoopConfig
from .diffusion import Timesteps
from .draws import draw_noise, generator_for
from .timesteps import draw_timestep

__all__ = ["Batch", "Batches", "Prior", "sample_posterior"]


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Clips of the class that the clips of the lesson belong to, which the model is to go on making as it does.

    Every batch holds as many of them as of the lesson's. Source: DreamBooth, arXiv:2208.12242, section 3.3.
    """

    clips: CachedClips
    weight: float = 1.0
    """How much their mean error counts beside that of the lesson's clips."""
    conditions: Sequence[Condition] = ()
    """Of the same kinds as the lesson's, for these clips."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clean latents with the noise, timesteps, captions and extras they are seen with."""

    clean: Latents
    noise: Latents
    timesteps: Timesteps
    states: PromptStates
    extras: Mapping[str, Tensor]
    """What the model is told besides the caption, by name."""
    weights: Float[Tensor, " b"]
    """How much each clip counts; 1 on the average over a batch without a prior."""
    sources: tuple[str, ...]

    def to(self, device: torch.device) -> Self:
        """On a device; the copy of a pinned batch goes on while the host does other things."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """In pages that stay where they are, from which an accelerator copies by itself."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {name: change(getattr(self, name)) for name in ("clean", "noise", "timesteps", "states", "weights")}
        return replace(self, **tensors, extras={name: change(extra) for name, extra in self.extras.items()})


@dataclass(frozen=True, kw_only=True)
class _Course:
    """Clips of one kind: a row of batches of its own."""

    clips: CachedClips
    plan: BatchPlan
    weight: float
    conditions: Sequence[Condition]
    place: tuple[object, ...]
    """What its random numbers begin with."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One clip of a batch."""

    clean: Tensor
    noise: Tensor
    timestep: Tensor
    states: Tensor
    extras: Mapping[str, Tensor]
    weight: float
    source: str


class Batches:
    """The batches of a run by the number of their forward pass; there are ``gradient_accumulation`` of them in a step.

    With a prior, a batch holds ``batch_size`` of the clips and as many of the prior's; ConfigError where they are not all of
    one size, so that they cannot be stacked.
    """

    def __init__(
        self,
        clips: CachedClips,
        config: LoopConfig,
        *,
        num_timesteps: int,
        frame_group: int,
        conditions: Sequence[Condition] = (),
        priors: Sequence[Prior] = (),
    ) -> None:
        self._config, self._num_timesteps, self._frame_group = config, num_timesteps, frame_group
        kinds = [Prior(clips=clips, conditions=conditions), *priors]
        _check_stackable(kinds)
        self._courses = [
            _Course(
                clips=kind.clips,
                plan=BatchPlan(kind.clips, batch_size=config.batch_size, seed=config.seed),
                weight=kind.weight * len(kinds),  # the loss is a mean over all kinds, and should be a sum of the means of each
                conditions=kind.conditions,
                place=(config.seed, *(("prior", number) if number else ())),
            )
            for number, kind in enumerate(kinds)
        ]

    def hold(self, max_bytes: int) -> None:
        """Let the clips that are read from now on stay in memory, as far as they fit into ``max_bytes``."""
        memories = {course.clips.memory for course in self._courses}
        for memory in memories:
            memory.hold(max_bytes // len(memories))

    def read(self, forward: int) -> Batch:
        """The batch of the ``forward``-th forward pass."""
        size = self._config.batch_size
        rows = [
            self._seen(course, visit, forward * size + i)
            for course in self._courses
            for i, visit in enumerate(course.plan.at(forward))
        ]
        return Batch(
            clean=torch.stack([row.clean for row in rows]),
            noise=torch.stack([row.noise for row in rows]),
            timesteps=torch.stack([row.timestep for row in rows]),
            states=torch.stack([row.states for row in rows]),
            extras={name: torch.stack([row.extras[name] for row in rows]) for name in rows[0].extras},
            weights=torch.tensor([row.weight for row in rows]),
            sources=tuple(row.source for row in rows),
        )

    def _seen(self, course: _Course, visit: Visit, number: int) -> _Seen:
        """What is drawn for the ``number``-th visit: latents of the posterior, noise, timestep, caption, extras."""
        config = self._config
        clip, generator = course.clips.read(visit.index, caption=visit.caption), generator_for(*course.place, number)
        clean = padded_in_front(sample_posterior(clip, generator), self._frame_group)
        noise = draw_noise(tuple(clean.shape), generator)
        timestep = draw_timestep(
            config.timesteps, num_timesteps=self._num_timesteps, seed=config.seed, visit=number, generator=generator
        )
        is_dropped = bool(torch.rand((), generator=generator) < config.caption_dropout)
        look = Look(place=(*course.place, number), caption="" if is_dropped else clip["caption"], frame_group=self._frame_group)
        states = course.clips.empty_prompt_states if is_dropped else clip["prompt_states"]
        return _Seen(
            clean=clean,
            noise=noise,
            timestep=timestep,
            states=states.float(),
            extras=extras_of(course.conditions, clip, look),
            weight=course.weight,
            source=clip["source"],
        )


def _check_stackable(kinds: Sequence[Prior]) -> None:
    assert len({frozenset(condition.name for condition in kind.conditions) for kind in kinds}) == 1, "other extras"
    sizes = sorted({bucket for kind in kinds for bucket in kind.clips.buckets})
    if len(kinds) > 1 and len(sizes) > 1:
        raise ConfigError(
            f"Clips and those of their class are stacked in one batch, so all have to be of one size, not {', '.join(sizes)}: "
            "give one bucket, and the class the same."
        )


def sample_posterior(clip: CachedClip, generator: torch.Generator) -> torch.Tensor:
    """A latent ``(f c h w)`` drawn from what the VAE said of the clip."""
    mean = clip["latent_mean"].float()
    return mean + clip["latent_std"].float() * draw_noise(tuple(mean.shape), generator)
