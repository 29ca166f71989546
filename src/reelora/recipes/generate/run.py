"""From orders to files: everything is checked before the model is loaded, every video is written as soon as it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from reelora.errors import ConfigError, first_few
from reelora.generate import (
    Axis,
    Clip,
    Job,
    Session,
    StoppedError,
    arrange_axes,
    check_destination,
    contact_sheet,
    find_video_metadata,
    free_path,
    grid_sheet,
    grid_video,
)
from reelora.recipes.adapter_texts import AdapterFiles
from reelora.recipes.listener import Listener

from .like import Likeness
from .orders import Order
from .place import Place
from .saving import Saving
from .wishes import Wishes

__all__ = ["GenerateOutcome", "generate"]

_SHEET_COLUMNS = 4
_OF_THE_QUEUE = ("batch_size",)
"""What metadata tell of the queue and not of the video."""


@dataclass(frozen=True, kw_only=True)
class GenerateOutcome:
    """What became of the orders."""

    files: list[Path] = field(default_factory=list)
    """Made now, in the order of the work."""
    kept: list[Path] = field(default_factory=list)
    """Found already made."""
    is_stopped: bool = False


def generate(wishes: Wishes, place: Place, saving: Saving, *, listener: Listener) -> GenerateOutcome:
    """Make the videos that are wished for and write each as soon as it is done; several are numbered: ``cat-0.mp4`` ...

    Everything is checked before the model is loaded: settings, adapters, inputs, and whether the files may be written. Asked to
    stop, it ends between two steps and keeps what is finished.
    """
    plotted = wishes.plotted()
    place = place.like(plotted.likeness)
    session = place.open()
    jobs = _jobs(session, plotted.orders, batch_size=wishes.batch_size)
    output = _output(session, saving)
    outputs = _outputs(output, plotted.orders, saving)
    grids = _grid_files(session, output, saving) if plotted.axes else []
    work = _Work(session, jobs, outputs, saving, plotted.axes, grids, source=place.model or "", listener=listener)
    work.check()
    if plotted.likeness:
        work.check_like(plotted.likeness)
    return work.run()


def _jobs(session: Session, orders: Sequence[Order], *, batch_size: int) -> list[Job]:
    """Checked and read; each file is read once."""
    files = AdapterFiles()
    jobs = []
    for order in orders:
        used = files.read(order.adapters)
        adapters = {Path(file): (adapter, order.strengths.get(file, strength)) for file, (adapter, strength) in used.items()}
        inputs = {"image": order.image, "video": order.video, "adapters": adapters}
        settings = {"batch_size": batch_size, **order.settings}
        jobs.append(session.job(order.prompt, seed=order.seed or 0, **inputs, **settings))
    return jobs


def _output(session: Session, saving: Saving) -> Path:
    """The file that the others are named after."""
    output = saving.output or Path("image.png" if _is_still(session) else "video.mp4")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; name a file in it, such as {output / 'video.mp4'}.")
    return output


def _is_still(session: Session) -> bool:
    return session.facts.max_frames == 1


def _outputs(output: Path, orders: Sequence[Order], saving: Saving) -> list[Path]:
    """A file for each order: its own, or the common one with a number."""
    plain = [output] if len(orders) == 1 else [output.with_stem(f"{output.stem}-{index}") for index in range(len(orders))]
    wanted = [path if order.output is None else output.parent / order.output for path, order in zip(plain, orders, strict=True)]
    if repeated := sorted({str(path) for path in wanted if wanted.count(path) > 1}):
        raise ConfigError(f"{first_few(repeated)}: is the output of two prompts; give each a name of its own.")
    if not saving.number:
        return wanted
    free: list[Path] = []
    for path in wanted:
        free.append(free_path(path, taken=free))
    return free


def _grid_files(session: Session, output: Path, saving: Saving) -> list[Path]:
    """The picture of a sweep, and its video where it is one."""
    suffix = output.suffix if output.suffix in (".mp4", ".webm", ".gif", ".webp") else ".mp4"
    suffixes = [".png"] if _is_still(session) else [".png", suffix]
    files = [output.with_name(f"{output.stem}-grid{suffix}") for suffix in suffixes]
    return [free_path(file) for file in files] if saving.number else files


@dataclass(frozen=True, eq=False)
class _Work:
    """One call of the verb."""

    session: Session
    jobs: Sequence[Job]
    outputs: Sequence[Path]
    saving: Saving
    axes: Sequence[Axis]
    grids: Sequence[Path]
    """What is written of them."""
    source: str
    listener: Listener

    def check(self) -> None:
        """Whether every file may be written, this run's or an earlier one's."""
        may_exist = self.saving.overwrite or self.saving.resume
        options = {"codec": self.saving.codec, "crf": self.saving.crf}
        for path, job in zip(self.outputs, self.jobs, strict=True):
            size = (job.config.num_frames, job.config.height, job.config.width)
            check_destination(path, overwrite=may_exist, size=size, **options)
        for path in self._plotted:
            check_destination(path, overwrite=may_exist)
        if twice := [str(path) for path in self._plotted if path in self.outputs]:
            raise ConfigError(f"{first_few(twice)}: is the output of a prompt and of a sheet or grid; name another --sheet.")

    def check_like(self, likeness: Likeness) -> None:
        """Whether the video can be the same again."""
        hashes = {use.source: use.held.content_hash for job in self.jobs for use in job.uses}
        likeness.check(self.session.fingerprint, hashes)
        for note in likeness.notes:
            self.listener.say(note)

    def run(self) -> GenerateOutcome:
        kept = {index for index in range(len(self.jobs)) if self.saving.resume and self._is_made(index)}
        left = [index for index in range(len(self.jobs)) if index not in kept]
        outcome = GenerateOutcome(kept=[self.outputs[index] for index in sorted(kept)])
        clips: dict[int, Clip] = {}  # only where they are shown together: a long queue would fill the memory
        num_made = 0
        with self.listener.stopping() as should_stop:
            try:
                for place, clip in self._stream([self.jobs[index] for index in left], should_stop):
                    outcome.files.extend(self._save(left[place], clip))
                    num_made += 1
                    if self._plotted:
                        clips[left[place]] = clip
            except StoppedError as stop:
                self.listener.say(f"{stop} {num_made + len(kept)} of {len(self.jobs)} videos are finished.")
                return replace(outcome, is_stopped=True)
        outcome.files.extend(self._plots(clips))
        return outcome

    def _stream(self, jobs: Sequence[Job], should_stop: Any) -> Any:
        if not jobs:
            return iter(())
        return self.session.run(
            jobs, on_step=lambda step, total: self.listener.progress("generate", step, total), should_stop=should_stop
        )

    def _save(self, index: int, clip: Clip) -> list[Path]:
        for note in clip.notes:
            self.listener.say(f"{self.outputs[index]}: {note}" if len(self.jobs) > 1 else note)
        told = replace(clip, metadata=self._sourced(clip.metadata))
        options = {"codec": self.saving.codec, "crf": self.saving.crf}
        return told.save(self.outputs[index], overwrite=self.saving.overwrite, **options)

    def _sourced(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """With the model as it was named, by which it can be found again."""
        return {**metadata, "model": {**metadata["model"], "source": self.source}}

    def _is_made(self, index: int) -> bool:
        """Whether the file is there, made of the very same. Raises ConfigError for another video of that name, unless it may
        be replaced."""
        try:
            found = find_video_metadata(self.outputs[index])
        except FileNotFoundError:
            return False
        wanted = self._sourced(self.session.metadata(self.jobs[index]))
        if found is not None and _of_video(found) == _of_video(wanted):
            return True
        if self.saving.overwrite:
            return False
        differing = sorted(name for name in {*wanted, *(found or {})} if (found or {}).get(name) != wanted.get(name))
        raise ConfigError(
            f"{self.outputs[index]} exists and was made otherwise ({first_few(differing)}): choose another --output, or "
            "allow it with --overwrite."
        )

    # ---- all of them at once

    @property
    def _plotted(self) -> list[Path]:
        """Files that show several videos."""
        return [*([self.saving.sheet] if self.saving.sheet else []), *self.grids]

    def _plots(self, made: Mapping[int, Clip]) -> list[Path]:
        """The contact sheet and the grid, where they are asked for and every video is at hand."""
        if not self._plotted:
            return []
        clips = [made[index] for index in sorted(made)]
        if len(clips) < len(self.jobs):
            self.listener.say(f"No sheet and no grid: {len(self.jobs) - len(clips)} videos were made earlier; make all anew.")
            return []
        may_exist = self.saving.overwrite or self.saving.resume
        files: list[Path] = []
        if self.saving.sheet:
            labels = [job.prompt for job in self.jobs]
            pixels = contact_sheet(clips, labels, columns=min(_SHEET_COLUMNS, len(clips)))
            told = {"cells": [dict(clip.metadata) for clip in clips]}
            sheet = Clip(frames=torch.from_numpy(pixels)[None], fps=clips[0].fps, metadata=told)
            files += sheet.save(self.saving.sheet, overwrite=may_exist)
        if self.axes:
            rows, columns = arrange_axes(self.axes)
            plots = (grid_sheet, grid_video)
            for path, plot in zip(self.grids, plots, strict=False):
                files += plot(clips, rows=rows, columns=columns, title=_title(self.jobs)).save(path, overwrite=may_exist)
        return files


def _of_video(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in _OF_THE_QUEUE}


def _title(jobs: Sequence[Job]) -> str:
    """The prompt that all have in common."""
    prompts = {job.prompt for job in jobs}
    return prompts.pop() if len(prompts) == 1 else ""
