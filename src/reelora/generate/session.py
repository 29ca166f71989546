"""Loads a model once and makes videos with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

import torch

from reelora import __version__
from reelora.catalog import ModelFacts
from reelora.components import Bundle, fingerprint_of, load_components, needs_tiles
from reelora.errors import ConfigError
from reelora.lora import base_fingerprints, base_notes, evaluating, using
from reelora.shapes import FramesU8
from reelora.tensorio import fingerprint, open_tensors

from .clip import Clip
from .config import GenerateConfig
from .prompts import PromptBook, TokenStates
from .sampling import decode, denoise, make_pipeline
from .steps import OnStep, ShouldStop, StepWatch, ignore_step, never_stop
from .uses import NO_ADAPTERS, Adapters, AdapterUse, resolve

__all__ = ["Session"]

_ROLES = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
_TOLD = {"negative_prompt", "steps", "guidance", "num_frames", "height", "width"}
"""Settings that a file's metadata repeat."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video."""

    prompt: str
    seed: int


class Session:
    """A text-to-video model that stays loaded.

    Only its configs are read at once; the weights follow with the first video, after what is asked for has been checked.
    Sampling is CogVideoX's own: DPM-Solver++ with trailing timesteps, constant guidance. Noise is drawn on the CPU, so that
    a seed means the same on every device.

    Raises ConfigError at once for a model that does not make videos out of text alone.
    """

    def __init__(
        self, path_or_id: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        def load() -> Bundle:
            return load_components(path_or_id, roles=_ROLES, dtype=dtype, device=device)

        self._setup(load_components(path_or_id, roles=[]).facts, load, prompt_states={})

    @classmethod
    def of(cls, parts: Bundle, *, prompt_states: Mapping[str, TokenStates] | None = None) -> Self:
        """A session with parts that are loaded already, such as a transformer in training with its branches attached.

        Prompts (and the negative prompt, "" if there is none) whose states ``(s, d)`` are given need no text encoder.
        """
        session = cls.__new__(cls)
        session._setup(parts.facts, lambda: parts, prompt_states=prompt_states or {})
        return session

    def _setup(self, facts: ModelFacts, load: Callable[[], Bundle], *, prompt_states: Mapping[str, TokenStates]) -> None:
        facts.check_text_to_video()
        self.facts = facts
        self._load = load
        self._prompts = PromptBook(prompt_states)

    @cached_property
    def parts(self) -> Bundle:
        """The loaded model."""
        return self._load()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base transformer, for the metadata of files; as adapters note it of the base they were trained on."""
        source = next(part.source for part in self.parts.report.parts if part.role == "transformer")
        if source.is_relative_to(self.parts.root):
            return fingerprint_of(self.parts.root, "transformer")
        return fingerprint(open_tensors(source))

    @cached_property
    def _bases(self) -> Mapping[str, str]:
        """What adapters store of the base they were trained on."""
        return base_fingerprints(self.parts.transformer)

    def config(self, **settings: Any) -> GenerateConfig:
        """The model's defaults with these settings over them; see GenerateConfig for their names."""
        return GenerateConfig.for_model(self.facts, **settings)

    @overload
    def generate(
        self, prompt: str, *, adapters: Adapters = ..., on_step: OnStep = ..., should_stop: ShouldStop = ..., **settings: Any
    ) -> Clip: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        adapters: Adapters = ...,
        strict_base: bool = ...,
        on_step: OnStep = ...,
        should_stop: ShouldStop = ...,
        **settings: Any,
    ) -> list[Clip]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        adapters: Adapters = NO_ADAPTERS,
        strict_base: bool = False,
        on_step: OnStep = ignore_step,
        should_stop: ShouldStop = never_stop,
        **settings: Any,
    ) -> Clip | list[Clip]:
        """Make the video of a prompt, or a list with one for each prompt.

        ``settings`` are fields of GenerateConfig over the model's defaults: seed, steps, guidance, negative_prompt,
        num_frames, height, width, batch_size. ``adapters`` maps a path to a strength (1.0: as trained), or a name to an
        ``(adapter, strength)``; they act for this call, and the model is exactly as before afterwards, whatever happened.
        An adapter of other base weights is noted on the clip; with ``strict_base`` it is refused.

        Raises ConfigError for settings that cannot be, before anything is loaded; what reading or applying an adapter
        raises; StoppedError when ``should_stop`` says so (to keep what is finished by then, use ``stream``). A device that
        is too small raises torch.OutOfMemoryError.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        options = {"adapters": adapters, "strict_base": strict_base, "on_step": on_step, "should_stop": should_stop}
        clips = list(self.stream(prompts, self.config(**settings), **options))
        return clips[0] if isinstance(prompt, str) else clips

    def stream(
        self,
        prompts: Sequence[str],
        config: GenerateConfig,
        *,
        adapters: Adapters = NO_ADAPTERS,
        strict_base: bool = False,
        on_step: OnStep = ignore_step,
        should_stop: ShouldStop = never_stop,
    ) -> Iterator[Clip]:
        """As ``generate``, but hands out each video as soon as its batch is done. Checks and reads before it returns."""
        config.check(self.facts)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError(f"Prompts have to be texts, at least one; not {prompts!r}.")
        jobs = [Job(prompt=prompt, seed=seed) for prompt, seed in zip(prompts, config.seeds(len(prompts)), strict=True)]
        batches = [jobs[start : start + config.batch_size] for start in range(0, len(jobs), config.batch_size)]
        watch = StepWatch(total=config.steps * len(batches), on_step=on_step, should_stop=should_stop)
        uses = resolve(adapters)
        notes = [
            note
            for use in uses
            for note in base_notes(use.adapter, lambda: self._bases, name=use.name, strict_base=strict_base)
        ]
        return (clip for batch in batches for clip in self._run(batch, config, uses, watch, tuple(notes)))

    def _run(
        self, jobs: list[Job], config: GenerateConfig, uses: Sequence[AdapterUse], watch: StepWatch, notes: tuple[str, ...]
    ) -> list[Clip]:
        """One batch, from prompts to clips."""
        watch.check()
        transformer, vae = self.parts.transformer, self.parts.vae
        applied = [(use.adapter, use.strength) for use in uses]
        with torch.no_grad(), evaluating(transformer, vae), using(transformer, applied):
            videos = self._sample(jobs, config, watch)
        return [
            Clip(
                frames=frames,
                fps=self.facts.fps,
                metadata=self._describe(job, config, uses, batch_size=len(jobs)),
                notes=(*notes, *self._notes(job, config)),
            )
            for job, frames in zip(jobs, videos, strict=True)
        ]

    def _sample(self, jobs: list[Job], config: GenerateConfig, watch: StepWatch) -> list[FramesU8]:
        pipeline = make_pipeline(self.parts)
        states = self._prompts.states(self.parts, [job.prompt for job in jobs])
        negative = self._prompts.states(self.parts, [config.negative_prompt] * len(jobs)) if config.is_guided else None
        latents = denoise(pipeline, states, negative, [job.seed for job in jobs], config, watch)
        padding = self.facts.padded_latent_frames(config.num_frames) - self.facts.latent_frames(config.num_frames)
        return decode(pipeline, latents, config, padding=padding)

    def _is_tiled(self, config: GenerateConfig) -> bool:
        return needs_tiles(self.parts.vae, num_frames=config.num_frames, height=config.height, width=config.width)

    def _notes(self, job: Job, config: GenerateConfig) -> tuple[str, ...]:
        texts = {"prompt": job.prompt} | ({"negative prompt": config.negative_prompt} if config.is_guided else {})
        return tuple(
            f"{what} too long: {note}" for what, text in texts.items() for note in self._prompts.notes(self.parts, text)
        )

    def _describe(self, job: Job, config: GenerateConfig, uses: Sequence[AdapterUse], *, batch_size: int) -> dict[str, Any]:
        """What is needed to make the same video again, and nothing that changes from run to run."""
        return {
            **config.model_dump(include=_TOLD),
            **({"vae_tiling": True} if self._is_tiled(config) else {}),
            "prompt": job.prompt,
            "seed": job.seed,
            "batch_size": batch_size,
            "dtype": str(self.parts.transformer.dtype).removeprefix("torch."),
            "model": {"name": self.facts.name, "hub_id": self.facts.hub_id, "fingerprint": self.fingerprint},
            "adapters": [use.description for use in uses],
            "reelora": __version__,
        }
