"""The demo from the first clip to the report."""

import time
from dataclasses import dataclass
from pathlib import Path

from reelora.adapters import ATTENTION_TARGETS, read_adapter
from reelora.errors import ConfigError
from reelora.generate import Session
from reelora.recipes.config import AdapterConfig, DataConfig, PriorConfig, TrainConfig
from reelora.recipes.files import check_folder
from reelora.recipes.listener import Listener
from reelora.recipes.machine import find_device, find_dtype
from reelora.recipes.model import POCKET, find_model
from reelora.recipes.train import train
from reelora.train import LoopConfig, OptimizerConfig

from .answers import Trial, answer, tiled
from .report import write_demo_report
from .scenes import TRIGGER, ask_for_known, ask_for_stars, write_reminders, write_stars

__all__ = ["DemoOutcome", "DemoPlan", "demo"]


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """How large a demo is."""

    num_clips: int = 24
    """Clips of the new shape to learn from."""
    num_held_out: int = 12
    """Further clips of it, which are never learned from, to measure on."""
    num_reminders: int = 24
    """Clips of shapes that it knows, lest it forgets them."""
    num_videos: int = 20
    """Videos per question."""
    steps: int = 400


DEFAULT_PLAN = DemoPlan()


@dataclass(frozen=True, kw_only=True)
class DemoOutcome:
    """The demo's folder and what was found."""

    folder: Path
    plan: DemoPlan
    stars: Trial
    known: Trial
    seconds: float

    def lines(self, *, program: str = "reelora") -> list[str]:
        """What happened, in five lines; the last is a command of ``program`` to type next."""
        before, after = self.stars.shares()["shape"]
        kept = ", ".join(f"{part} {was:.0%} -> {now:.0%}" for part, (was, now) in self.known.shares().items())
        plan, adapter, report = self.plan, self.folder / "adapter.safetensors", self.folder / "report.html"
        return [
            f"The pocket model saw {plan.num_clips} clips of a star, which it did not know, under the new word {TRIGGER!r}.",
            f"Asked for one with {plan.num_videos} seeds, it drew a star in {before:.0%} before and in {after:.0%} after.",
            f"What it knew before, right in {plan.num_videos} other videos: {kept}.",
            f"It took {self.seconds / 60:.1f} minutes. Open {report}; before.mp4 and after.mp4 lie beside it.",
            f'Next: {program} generate "a blue {TRIGGER} stands still on a white background" --adapter {adapter} -o mine.mp4',
        ]


def demo(folder: Path, *, device: str, seed: int, listener: Listener, plan: DemoPlan = DEFAULT_PLAN) -> DemoOutcome:
    """Draw clips of a star under a word of its own, train an adapter on them, and compare videos before and after.

    Leaves ``adapter.safetensors``, ``before.mp4``, ``after.mp4`` and ``report.html`` in ``folder``, the clips and everything
    of the run beside them. A demo that was stopped goes on with its training; one that is complete is left alone.
    """
    started = time.monotonic()
    if (folder / "report.html").exists():
        raise ConfigError(f"{folder} holds a finished demo. Delete it, or name another folder with --output.")
    check_folder(folder)
    config = demo_config(folder, plan, device=device, seed=seed)
    write_stars(config.data.folder, count=plan.num_clips + plan.num_held_out, seed=seed)
    write_reminders(Path(config.prior.folder), count=plan.num_reminders, seed=seed)
    listener.say(
        f"drew {plan.num_clips} clips of a star, called {TRIGGER!r}, and {plan.num_held_out} more to measure on, into "
        f"{config.data.folder}, and {plan.num_reminders} of known shapes as reminders, into {config.prior.folder}"
    )
    place = find_device(device)
    session = Session(find_model(POCKET), dtype=find_dtype("auto", place), device=place)
    stars, known = (ask(count=plan.num_videos, seed=seed) for ask in (ask_for_stars, ask_for_known))
    stars_before = answer(session, stars, {}, task="stars before", listener=listener)
    known_before = answer(session, known, {}, task="known before", listener=listener)
    outcome = train(config, listener=listener, report_name="training.html")
    taught = {TRIGGER: (read_adapter(outcome.adapter), 1.0)}
    stars_after = answer(session, stars, taught, task="stars after", listener=listener)
    known_after = answer(session, known, taught, task="known after", listener=listener)
    for name, videos in (("before", stars_before), ("after", stars_after)):
        tiled(videos.clips).save(folder / f"{name}.mp4", overwrite=True)
    result = DemoOutcome(
        folder=folder,
        plan=plan,
        stars=Trial(before=stars_before, after=stars_after),
        known=Trial(before=known_before, after=known_after),
        seconds=time.monotonic() - started,
    )
    write_demo_report(folder, outcome.summary, result.stars, result.known, result.lines())
    return result


def demo_config(folder: Path, plan: DemoPlan, *, device: str, seed: int) -> TrainConfig:
    """The settings of the demo's run: feed-forward layers too, because an outline is more than where to look.

    The reminders are clips of the class: a batch holds as many of them as of stars, and only stars are held out.
    """
    return TrainConfig(
        output=folder,
        device=device,
        trigger_words=(TRIGGER,),
        data=DataConfig(folder=folder / "clips", held_out=plan.num_held_out, encode_batch_size=4),
        prior=PriorConfig(folder=folder / "reminders"),
        lora=AdapterConfig(rank=64, alpha=64, target_modules=(*ATTENTION_TARGETS, "ff.net.0.proj", "ff.net.2")),
        loop=LoopConfig(
            steps=plan.steps,
            batch_size=4,
            seed=seed,
            checkpoint_every=100,
            evaluate_every=100,
            optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=5),
        ),
    )
