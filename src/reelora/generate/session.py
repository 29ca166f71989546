"""Loads a model once and makes videos with it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, overload

import torch

from reelora.components import Bundle, load_components
from reelora.errors import ConfigError
from reelora.lora import base_notes
from reelora.plan import AUTO, Plan
from reelora.tensorio import is_text, shown

from .clip import Clip
from .config import GenerateConfig
from .fusing import is_fused
from .jobs import Job
from .planning import Planner, asked_plan
from .prompts import PromptBook, TokenStates
from .schedulers import default_scheduler
from .sources import Given, Source, read_image, read_video
from .steps import OnStep, ShouldStop, ignore_step, never_stop
from .studio import Studio
from .tasks import task_of
from .uses import NO_ADAPTERS, Adapters

__all__ = ["Session"]


class Session:
    """A model that stays loaded: CogVideoX, from text, an image or a video to video; or Stable Diffusion, from text to image.

    Only its configs are read at once; the weights follow with the first video, after what is asked for has been checked, and
    those of the text encoder with the first prompt that is new.
    What is read is what ``load_components`` takes: a diffusers folder, a hub id, or a SAT checkpoint with its YAMLs as
    ``sat_config``; ``paths`` says by role what comes from elsewhere.

    Sampling is that of the stock diffusers pipelines, with timesteps as CogVideo takes them; or, with ``sampling="sat"``, that
    of the original code. Noise is drawn on the CPU, so that a seed means the same on every device. Adapters that were used
    lately stay read and stacked, so that using them again costs nothing.

    ``plan`` says where the parts are meanwhile, for example ``"model"`` or ``"group,streams,tiles"``; by itself (``auto``) the
    fastest that fits the device (see `reelora.plan`). Unless all stay, text encoders are let go when all prompts are encoded.

    Raises ConfigError at once for a model whose parts do not belong together, and what ``load_components`` raises.
    """

    def __init__(
        self,
        path_or_id: str | Path | None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        sat_config: str | Path | Sequence[str | Path] | None = None,
        paths: Mapping[str, str | Path] | None = None,
        plan: Plan | str = AUTO,
    ) -> None:
        load = partial(load_components, path_or_id, sat_config=sat_config, paths=paths)
        described = load(roles=[])
        planner = Planner(described=described, asked=asked_plan(plan), device=torch.device(device or "cpu"), dtype=dtype)
        # On the host, mapped; the plan of a job says what goes to the device, and when.
        roles = (*described.text_roles[::2], described.denoiser, "vae", "scheduler")
        studio = Studio(load=partial(load, roles=roles, dtype=dtype), prompts=PromptBook({}), planner=planner)
        self._setup(described, studio)

    @classmethod
    def of(cls, parts: Bundle, *, prompt_states: Mapping[str, TokenStates] | None = None) -> Self:
        """A session with parts that are loaded already, such as a transformer in training with its branches attached.

        Prompts (and the negative prompt, "" if there is none) whose states ``(s, d)`` are given need no text encoder.
        """
        session = cls.__new__(cls)
        session._setup(parts, Studio(load=lambda: parts, prompts=PromptBook(prompt_states or {}), planner=None))
        return session

    def _setup(self, described: Bundle, studio: Studio) -> None:
        """``described`` need not have any part yet."""
        described.facts.check_trainable()
        self.facts = described.facts
        self._sat_sampling = described.sat_sampling
        self._scheduler = default_scheduler(described.facts, described.scheduler_class)
        self._studio = studio

    @property
    def parts(self) -> Bundle:
        """The loaded model."""
        return self._studio.parts

    @property
    def fingerprint(self) -> str:
        """Hash of the base's denoiser, for the metadata of files."""
        return self._studio.base.fingerprint

    # ---- what is asked for

    def config(self, **settings: Any) -> GenerateConfig:
        """The model's defaults with these settings over them; see GenerateConfig for their names.

        Sampling as SAT does it, a SAT checkpoint does what its YAML says.
        """
        told = self._sat_sampling if settings.get("sampling") == "sat" else {"scheduler": self._scheduler}
        return GenerateConfig.for_model(self.facts, **{**told, **settings})

    def job(
        self,
        prompt: str,
        *,
        seed: int = 0,
        adapters: Adapters = NO_ADAPTERS,
        image: Given | None = None,
        video: Given | None = None,
        strict_base: bool = False,
        **settings: Any,
    ) -> Job:
        """One video for ``run``, with everything that ``generate`` takes; checked, and read but for the model."""
        config = self.config(seed=seed, **settings)
        [job] = self._jobs([prompt], config.seeds(1), config, adapters, image=image, video=video, strict_base=strict_base)
        return job

    def _jobs(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        config: GenerateConfig,
        adapters: Adapters,
        *,
        image: Given | None,
        video: Given | None,
        strict_base: bool,
    ) -> list[Job]:
        """A job for each prompt and seed, all with the same inputs."""
        config.check(self.facts)
        task = task_of(self.facts, has_image=image is not None, has_video=video is not None)
        config.check_task(task)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError(f"Prompts have to be texts, at least one; not {prompts!r}.")
        if odd := [shown(prompt) for prompt in (*prompts, config.negative_prompt) if not is_text(prompt)]:
            raise ConfigError(f"A prompt has to be text that UTF-8 can hold; {odd[0]} has half a character or is no UTF-8.")
        source = self._source(image, video, config)
        uses = self._studio.shelf.resolve(adapters)
        notes = [
            note
            for use in uses
            for note in base_notes(use.adapter, lambda: self._studio.base.fingerprints, name=use.name, strict_base=strict_base)
        ]
        fused = bool(uses) and is_fused(config, self.facts, task)
        common = {"config": config, "task": task, "uses": tuple(uses), "source": source, "is_fused": fused}
        return [
            Job(prompt=prompt, seed=seed, notes=tuple(notes), **common) for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _source(self, image: Given | None, video: Given | None, config: GenerateConfig) -> Source | None:
        if image is not None:
            return read_image(image)
        return None if video is None else read_video(video, self.facts, num_frames=config.num_frames)

    # ---- from jobs to clips

    @overload
    def generate(
        self,
        prompt: str,
        *,
        adapters: Adapters = ...,
        image: Given | None = ...,
        video: Given | None = ...,
        strict_base: bool = ...,
        on_step: OnStep = ...,
        should_stop: ShouldStop = ...,
        **settings: Any,
    ) -> Clip: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        adapters: Adapters = ...,
        image: Given | None = ...,
        video: Given | None = ...,
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
        image: Given | None = None,
        video: Given | None = None,
        strict_base: bool = False,
        on_step: OnStep = ignore_step,
        should_stop: ShouldStop = never_stop,
        **settings: Any,
    ) -> Clip | list[Clip]:
        """Make the video of a prompt; or a list, with one for each prompt, or ``videos_per_prompt`` for each.

        ``settings`` are fields of GenerateConfig over the model's defaults: seed, steps, scheduler, guidance, negative_prompt,
        num_frames, height, width ... ``image`` or ``video`` is what it begins with: a file, or pixels (see `Given`).
        ``adapters`` maps a path to a strength (1.0: as trained), or a name to an ``(adapter, strength)``; they act for this
        call, and the model is exactly as before afterwards, whatever happened. An adapter of other base weights is noted on the
        clip; with ``strict_base`` it is refused.

        Raises ConfigError for settings that cannot be, before anything is loaded; what reading an input or reading or applying
        an adapter raises; StoppedError when ``should_stop`` says so (to keep what is finished by then, use ``stream``). A
        device that is too small raises torch.OutOfMemoryError.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        config = self.config(**settings)
        inputs = {"adapters": adapters, "image": image, "video": video, "strict_base": strict_base}
        clips = list(self.stream(prompts, config, **inputs, on_step=on_step, should_stop=should_stop))
        return clips[0] if isinstance(prompt, str) and len(clips) == 1 else clips

    def stream(
        self,
        prompts: Sequence[str],
        config: GenerateConfig,
        *,
        adapters: Adapters = NO_ADAPTERS,
        image: Given | None = None,
        video: Given | None = None,
        strict_base: bool = False,
        on_step: OnStep = ignore_step,
        should_stop: ShouldStop = never_stop,
    ) -> Iterator[Clip]:
        """As ``generate``, but hands out each video as soon as its batch is done. Checks and reads before it returns.

        The adapters act until the last video is handed out, or the iterator is closed.
        """
        each = [prompt for prompt in prompts for _ in range(config.videos_per_prompt)]
        inputs = {"image": image, "video": video, "strict_base": strict_base}
        jobs = self._jobs(each, config.seeds(len(each)), config, adapters, **inputs)
        return (clip for _, clip in self.run(jobs, on_step=on_step, should_stop=should_stop))

    def run(
        self, jobs: Sequence[Job], *, on_step: OnStep = ignore_step, should_stop: ShouldStop = never_stop
    ) -> Iterator[tuple[int, Clip]]:
        """Make the videos of jobs, each handed out with its index as soon as it is done.

        Those with the same adapters run one after the other, so that adapters change as seldom as can be; those that are
        otherwise alike share batches of their ``batch_size``. A video is the same to the byte whatever else is in the queue,
        unless it shares a batch. Raises as ``generate``, at the video that is at fault.
        """
        if not jobs:
            raise ConfigError("There is nothing to make: give at least one job.")
        return self._studio.run(jobs, on_step=on_step, should_stop=should_stop)

    def metadata(self, job: Job) -> dict[str, Any]:
        """What the video of a job, made alone, says of itself: all that is needed to make the same again."""
        return self._studio.metadata(job)
