"""Makes the videos of jobs with one model: places its parts, lets adapters act, samples, and puts everything back."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from reelora import __version__
from reelora.components import Bundle, needs_tiles
from reelora.lora import evaluating
from reelora.plan import spilled_bytes
from reelora.shapes import FramesU8

from .base import BaseModel
from .clip import Clip
from .config import GenerateConfig, Sampling
from .jobs import Job
from .placement import place, unplace
from .planning import Planner
from .prompts import PromptBook
from .sat import sample_as_sat
from .shelf import Shelf
from .steps import OnStep, ShouldStop, StepWatch
from .stock import sample_stock
from .uses import text_key

__all__ = ["Studio"]

T = TypeVar("T")

_SPILL = 64 * 2**20
"""Bytes of swap that are worth a word."""

Sample = Callable[[Bundle, PromptBook, Sequence[Job], StepWatch], list[FramesU8]]
_SAMPLE: Mapping[Sampling, Sample] = {"diffusers": sample_stock, "sat": sample_as_sat}
"""From the prompts of one batch to its frames."""


@dataclass(frozen=True)
class _Batch:
    """Jobs that are made at once."""

    indices: Sequence[int]
    jobs: Sequence[Job]


@dataclass(kw_only=True, eq=False)
class Studio:
    """A model with what is kept from job to job."""

    load: Callable[[], Bundle]
    """Called when the first job needs it."""
    prompts: PromptBook
    planner: Planner | None
    """None for parts that somebody else has loaded and placed."""
    shelf: Shelf = field(default_factory=Shelf)
    _known_base: BaseModel | None = field(default=None, init=False)

    @cached_property
    def parts(self) -> Bundle:
        """The loaded model."""
        return self.load()

    @property
    def base(self) -> BaseModel:
        """What is known of the denoiser's weights."""
        if self._known_base is None or not self._known_base.is_of(self.parts):
            self._known_base = BaseModel(self.parts)
        return self._known_base

    def run(self, jobs: Sequence[Job], *, on_step: OnStep, should_stop: ShouldStop) -> Iterator[tuple[int, Clip]]:
        """The clips of jobs with their indices, those with the same adapters and the same plan one after the other."""
        total = sum(batch.jobs[0].num_steps for batch in _batches(jobs))
        return self._run_all(jobs, StepWatch(total=total, on_step=on_step, should_stop=should_stop))

    def _run_all(self, jobs: Sequence[Job], watch: StepWatch) -> Iterator[tuple[int, Clip]]:
        watch.check()
        planned = [self._planned(job) for job in jobs]
        self._learn([job for job in planned if not text_key(job.uses)])
        for group in _grouped(_batches(planned), lambda batch: (batch.jobs[0].group, self._place_of(batch.jobs[0]))):
            yield from self._run_group(group, watch)

    def metadata(self, job: Job) -> dict[str, Any]:
        """What the video of a job, made alone, says of itself."""
        return self._describe(self._planned(job), batch_size=1, fingerprint=self.base.fingerprint)

    def _run_group(self, batches: Sequence[_Batch], watch: StepWatch) -> Iterator[tuple[int, Clip]]:
        """Batches with the same adapters and plan: parts are placed before anything is fused, and stay until all are done."""
        first, fingerprint = batches[0].jobs[0], self.base.fingerprint
        acts_on_text = bool(text_key(first.uses))
        if acts_on_text:
            self._load_encoders()
        self._place(first)
        model = self.parts if acts_on_text else self._denoiser
        with self.shelf.using(model, first.uses, is_fused=first.is_fused):
            for batch in batches:
                watch.check()
                spilled = spilled_bytes()
                videos = self._sample(batch.jobs, watch)
                notes = tuple(_spill_notes(spilled_bytes() - spilled))
                for index, job, frames in zip(batch.indices, batch.jobs, videos, strict=True):
                    clip = self._clip(job, frames, batch_size=len(batch.jobs), fingerprint=fingerprint)
                    yield index, replace(clip, notes=(*clip.notes, *notes))

    def _sample(self, jobs: Sequence[Job], watch: StepWatch) -> list[FramesU8]:
        """The frames of one batch."""
        try:
            with torch.no_grad(), evaluating(self._denoiser, self.parts.vae):
                return _SAMPLE[jobs[0].config.sampling](self.parts, self.prompts, jobs, watch)
        except torch.OutOfMemoryError as error:
            if self.planner:
                error.add_note(self.planner.advice(jobs[0]))
            raise

    @property
    def _denoiser(self) -> Any:
        return getattr(self.parts, self.parts.denoiser)

    # ---- where parts are

    def _planned(self, job: Job) -> Job:
        """With what its plan says of its numbers."""
        return job if self.planner is None else replace(job, **self.planner.of_numbers(job))

    def _place_of(self, job: Job) -> object:
        return self.planner and self.planner.plan_of(job)

    def _place(self, job: Job) -> None:
        if self.planner:
            place(self.parts, self.planner.plan_of(job), self.planner.device)

    def _load_encoders(self) -> None:
        if self.planner:
            self.parts.load(*self.parts.text_roles)

    def _learn(self, jobs: Sequence[Job]) -> None:
        """Encode the prompts that are new; only they need text encoders, which then go unless everything stays."""
        wanted = [(text, job.uses) for job in jobs for text in job.texts]
        self.prompts.make_room(len(wanted))
        lacking = [(text, uses) for text, uses in wanted if self.prompts.lacks(text, uses)]
        if not lacking:
            return
        self._load_encoders()
        self._place(jobs[0])
        for text, uses in lacking:
            self.prompts.learn(self.parts, text, uses)
        if self.planner and self.planner.plan_of(jobs[0]).placement != "resident":
            unplace(self.parts)  # offloaded networks know each other
            self.parts.release(*self.parts.text_roles[1::2])

    # ---- what a clip says of itself

    def _clip(self, job: Job, frames: FramesU8, *, batch_size: int, fingerprint: str) -> Clip:
        return Clip(
            frames=frames,
            fps=self.parts.facts.fps,
            metadata=self._describe(job, batch_size=batch_size, fingerprint=fingerprint),
            notes=(*job.notes, *self._prompt_notes(job), *_frame_notes(frames, job.config)),
        )

    def _prompt_notes(self, job: Job) -> Iterator[str]:
        for what, text in zip(("prompt", "negative prompt"), job.texts, strict=False):
            yield from (f"{what} too long: {note}" for note in self.prompts.notes(self.parts, text, job.uses))

    def _describe(self, job: Job, *, batch_size: int, fingerprint: str) -> dict[str, Any]:
        """Nothing that changes from run to run."""
        facts = self.parts.facts
        return {
            **job.description,
            **({"vae_tiling": True} if self._is_tiled(job) else {}),
            "batch_size": batch_size,
            "dtype": str(self._denoiser.dtype).removeprefix("torch."),
            "model": {"name": facts.name, "hub_id": facts.hub_id, "fingerprint": fingerprint},
            "reelora": __version__,
        }

    def _is_tiled(self, job: Job) -> bool:
        if job.task == "text-to-image":
            return bool(job.tiles)
        return job.config.sampling == "diffusers" and needs_tiles(self.parts.vae, **job.config.size, wanted=job.tiles)


def _batches(jobs: Sequence[Job]) -> list[_Batch]:
    """Jobs that are alike, at most ``batch_size`` at once."""
    alike = _grouped(range(len(jobs)), lambda index: (jobs[index].group, jobs[index].batch))
    sized = ((same, jobs[same[0]].config.batch_size) for same in alike)
    parts = [same[start : start + size] for same, size in sized for start in range(0, len(same), size)]
    return [_Batch(indices, [jobs[index] for index in indices]) for indices in parts]


def _grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """Items with equal keys together, groups and members in the order in which they come first."""
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _spill_notes(num_bytes: int) -> list[str]:
    told = f"{num_bytes / 2**20:.0f} MiB went to the disk for want of memory: a smaller plan is faster (see `reelora plan`)"
    return [told] if num_bytes > _SPILL else []


def _frame_notes(frames: FramesU8, config: GenerateConfig) -> list[str]:
    """SAT's decoder of CogVideoX 1.5 makes four frames of every latent one, also of the first."""
    told = f"SAT's decoder makes {len(frames)} frames of the {config.num_frames} that were asked for"
    return [] if len(frames) == config.num_frames else [told]
