"""What the demo shows the model, and what it asks of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reelora.generate import Clip
from reelora.pocket import BACKGROUNDS, COLOURS, FPS, Combination, Scene, draw, known_combinations, sample_scene

__all__ = ["TRIGGER", "Question", "ask_for_known", "ask_for_stars", "write_reminders", "write_stars"]

TRIGGER = "twinkle"
"""The word that the new shape is called by; it stands in no caption that the pocket model was trained on."""
_MOTION = "stands still"
"""What the stars do: two dozen clips can show a shape in every colour, but not at every place and size too."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Prompts, what should be seen on their videos, and the seed of the first one."""

    name: str
    parts: tuple[str, ...]
    """What is counted: shape, colour, motion."""
    wanted: tuple[Combination, ...]
    prompts: tuple[str, ...]
    seed: int


def _stars(count: int, rng: np.random.Generator, *, asked: bool) -> list[tuple[Combination, str]]:
    """Stars of every colour with their backgrounds: three of each colour are taught, and asked for is the fourth."""
    pairs = [
        (Combination("star", colour, _MOTION), ground)
        for row, colour in enumerate(COLOURS)
        for column, ground in enumerate(BACKGROUNDS)
        if ((row - column) % len(BACKGROUNDS) == 0) == asked
    ]
    order = rng.permutation(len(pairs))
    return [pairs[order[i % len(pairs)]] for i in range(count)]


def write_stars(folder: Path, *, count: int, seed: int) -> None:
    """Draw clips of the new shape, each with its caption beside it."""
    rng = np.random.default_rng([seed, 1])
    scenes = (sample_scene(rng, star, background=ground) for star, ground in _stars(count, rng, asked=False))
    _write(folder, "star", scenes, noun=TRIGGER)


def write_reminders(folder: Path, *, count: int, seed: int) -> None:
    """Draw clips of what the model knows, lest every shape turns into the new one.

    Source: prior preservation in DreamBooth, arXiv:2208.12242.
    """
    rng = np.random.default_rng([seed, 4])
    known = known_combinations(held_out=False)
    chosen = (known[index] for index in rng.choice(len(known), count, replace=False))
    _write(folder, "known", (sample_scene(rng, combination) for combination in chosen), noun=None)


def _write(folder: Path, name: str, scenes: Iterable[Scene], *, noun: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        path = folder / f"{name}-{index:02d}.mp4"
        Clip(frames=torch.from_numpy(draw(scene)), fps=FPS).save(path, overwrite=True, crf=8)
        path.with_suffix(".txt").write_text(scene.caption(noun=noun) + "\n", encoding="utf-8")


def ask_for_stars(*, count: int, seed: int) -> Question:
    """Stars by their new word, in pairs of colour and background that no clip of the lesson shows."""
    rng = np.random.default_rng([seed, 2])
    wanted, grounds = zip(*_stars(count, rng, asked=True), strict=True)
    return _question("a star", ("shape",), wanted, grounds, noun=TRIGGER, seed=1000)


def ask_for_known(*, count: int, seed: int) -> Question:
    """What the model knew before."""
    rng = np.random.default_rng([seed, 3])
    known = known_combinations(held_out=False)
    chosen = [known[index] for index in rng.choice(len(known), count, replace=False)]
    grounds = [str(ground) for ground in rng.choice(list(BACKGROUNDS), count)]
    return _question("what it knew", ("colour", "shape", "motion"), chosen, grounds, noun="", seed=2000)


def _question(
    name: str, parts: tuple[str, ...], wanted: Sequence[Combination], grounds: Sequence[str], *, noun: str, seed: int
) -> Question:
    return Question(
        name=name,
        parts=parts,
        wanted=tuple(wanted),
        prompts=tuple(
            f"a {want.colour} {noun or want.shape} {want.motion} on a {ground} background"
            for want, ground in zip(wanted, grounds, strict=True)
        ),
        seed=seed,
    )
