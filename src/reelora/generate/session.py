"""Loads a model once and makes videos with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, overload

import torch

from reelora import __version__
from reelora.components import Bundle, load_components, needs_tiles
from reelora.errors import ConfigError
from reelora.lora import base_notes, evaluating
from reelora.shapes import FramesU8

from .base import BaseModel
from .clip import Clip
from .config import GenerateConfig, Sampling
from .jobs import Job
from .prompts import PromptBook, TokenStates
from .sat import sample_as_sat
from .shelf import Shelf
from .steps import OnStep, ShouldStop, StepWatch, ignore_step, never_stop
from .stock import sample_stock
from .uses import NO_ADAPTERS, Adapters, AdapterUse

__all__ = ["Session"]

_ROLES = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")

Sample = Callable[[Bundle, PromptBook, Sequence[Job], GenerateConfig, StepWatch], list[FramesU8]]
_SAMPLE: Mapping[Sampling, Sample] = {"diffusers": sample_stock, "sat": sample_as_sat}
"""From the prompts of one batch to its frames."""


class Session:
    """A text-to-video model that stays loaded.

    Only its configs are read at once; the weights follow with the first video, after what is asked for has been checked.
    What is read is what ``load_components`` takes: a diffusers folder, a hub id, or a SAT checkpoint with its YAMLs as
    ``sat_config``; ``paths`` says by role what comes from elsewhere.

    Sampling is CogVideoX's own in diffusers: DPM-Solver++ with trailing timesteps, constant guidance; or, with
    ``sampling="sat"``, that of the original code. Noise is drawn on the CPU, so that a seed means the same on every device.
    Adapters that were used lately stay read and stacked, so that using them again costs nothing.

    Raises ConfigError at once for a model that does not make videos out of text alone, and what ``load_components`` raises.
    """

    def __init__(
        self,
        path_or_id: str | Path | None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        sat_config: str | Path | Sequence[str | Path] | None = None,
        paths: Mapping[str, str | Path] | None = None,
    ) -> None:
        load = partial(load_components, path_or_id, sat_config=sat_config, paths=paths)
        self._setup(load(roles=[]), partial(load, roles=_ROLES, dtype=dtype, device=device), prompt_states={})

    @classmethod
    def of(cls, parts: Bundle, *, prompt_states: Mapping[str, TokenStates] | None = None) -> Self:
        """A session with parts that are loaded already, such as a transformer in training with its branches attached.

        Prompts (and the negative prompt, "" if there is none) whose states ``(s, d)`` are given need no text encoder.
        """
        session = cls.__new__(cls)
        session._setup(parts, lambda: parts, prompt_states=prompt_states or {})
        return session

    def _setup(self, described: Bundle, load: Callable[[], Bundle], *, prompt_states: Mapping[str, TokenStates]) -> None:
        """``described`` need not have any part yet."""
        described.facts.check_text_to_video()
        self.facts = described.facts
        self._sat_sampling = described.sat_sampling
        self._load = load
        self._prompts = PromptBook(prompt_states)
        self._shelf = Shelf()
        self._known_base: BaseModel | None = None

    @cached_property
    def parts(self) -> Bundle:
        """The loaded model."""
        return self._load()

    @property
    def fingerprint(self) -> str:
        """Hash of the base transformer, for the metadata of files."""
        return self._base.fingerprint

    @property
    def _base(self) -> BaseModel:
        if self._known_base is None or not self._known_base.is_of(self.parts.report):
            self._known_base = BaseModel(self.parts)
        return self._known_base

    def config(self, **settings: Any) -> GenerateConfig:
        """The model's defaults with these settings over them; see GenerateConfig for their names.

        Sampling as SAT does it, a SAT checkpoint does what its YAML says.
        """
        told = self._sat_sampling if settings.get("sampling") == "sat" else {}
        return GenerateConfig.for_model(self.facts, **{**told, **settings})

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
        num_frames, height, width, batch_size, sampling and what belongs to it. ``adapters`` maps a path to a strength
        (1.0: as trained), or a name to an ``(adapter, strength)``; they act for this call, and the model is exactly as before
        afterwards, whatever happened. An adapter of other base weights is noted on the clip; with ``strict_base`` it is
        refused.

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
        uses = self._shelf.resolve(adapters)
        notes = [
            note
            for use in uses
            for note in base_notes(use.adapter, lambda: self._base.fingerprints, name=use.name, strict_base=strict_base)
        ]
        return (clip for batch in batches for clip in self._run(batch, config, uses, watch, tuple(notes)))

    def _run(
        self, jobs: list[Job], config: GenerateConfig, uses: Sequence[AdapterUse], watch: StepWatch, notes: tuple[str, ...]
    ) -> list[Clip]:
        """One batch, from prompts to clips."""
        watch.check()
        transformer, vae = self.parts.transformer, self.parts.vae
        with torch.no_grad(), evaluating(transformer, vae), self._shelf.using(transformer, uses):
            videos = _SAMPLE[config.sampling](self.parts, self._prompts, jobs, config, watch)
        return [
            Clip(
                frames=frames,
                fps=self.facts.fps,
                metadata=self._describe(job, config, uses, batch_size=len(jobs)),
                notes=(*notes, *self._notes(job, config), *_frame_notes(frames, config)),
            )
            for job, frames in zip(jobs, videos, strict=True)
        ]

    def _is_tiled(self, config: GenerateConfig) -> bool:
        size = {"num_frames": config.num_frames, "height": config.height, "width": config.width}
        return config.sampling == "diffusers" and needs_tiles(self.parts.vae, **size)

    def _notes(self, job: Job, config: GenerateConfig) -> tuple[str, ...]:
        texts = {"prompt": job.prompt} | ({"negative prompt": config.negative_prompt} if config.has_negative_prompt else {})
        return tuple(
            f"{what} too long: {note}" for what, text in texts.items() for note in self._prompts.notes(self.parts, text)
        )

    def _describe(self, job: Job, config: GenerateConfig, uses: Sequence[AdapterUse], *, batch_size: int) -> dict[str, Any]:
        """What is needed to make the same video again, and nothing that changes from run to run."""
        return {
            **config.told,
            **({"vae_tiling": True} if self._is_tiled(config) else {}),
            "prompt": job.prompt,
            "seed": job.seed,
            "batch_size": batch_size,
            "dtype": str(self.parts.transformer.dtype).removeprefix("torch."),
            "model": {"name": self.facts.name, "hub_id": self.facts.hub_id, "fingerprint": self.fingerprint},
            "adapters": [use.description for use in uses],
            "reelora": __version__,
        }


def _frame_notes(frames: FramesU8, config: GenerateConfig) -> list[str]:
    """SAT's decoder of CogVideoX 1.5 makes four frames of every latent one, also of the first."""
    told = f"SAT's decoder makes {len(frames)} frames of the {config.num_frames} that were asked for"
    return [] if len(frames) == config.num_frames else [told]
