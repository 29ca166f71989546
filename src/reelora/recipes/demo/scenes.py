"""What the demo shows the model, and what it asks of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reelora.generate import Clip
from reelora.pocket import BACKGROUNDS, COLOURS, FPS, MOTIONS, Combination, draw, known_combinations, sample_scene

__all__ = ["TRIGGER", "Question", "ask_for_known", "ask_for_stars", "write_clips"]

TRIGGER = "twinkle"
"""The word that the new shape is called by; it stands in no caption that the pocket model was trained on."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Prompts, what should be seen on their videos, and the seed of the first one."""

    name: str
    parts: tuple[str, ...]
    """What is counted: shape, colour, motion."""
    wanted: tuple[Combination, ...]
    prompts: tuple[str, ...]
    seed: int


def _stars(count: int, rng: np.random.Generator) -> list[Combination]:
    """Stars of every colour and motion in turn."""
    colours, motions = (list(rng.permutation(names)) for names in (list(COLOURS), MOTIONS))
    return [Combination("star", colours[i % len(colours)], motions[i % len(motions)]) for i in range(count)]


def write_clips(folder: Path, *, count: int, seed: int) -> None:
    """Draw ``count`` clips to learn from, each with its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 1])
    for index, star in enumerate(_stars(count, rng)):
        scene = sample_scene(rng, star)
        path = folder / f"star-{index:02d}.mp4"
        Clip(frames=torch.from_numpy(draw(scene)), fps=FPS).save(path, overwrite=True, crf=8)
        path.with_suffix(".txt").write_text(scene.caption(noun=TRIGGER) + "\n", encoding="utf-8")


def ask_for_stars(*, count: int, seed: int) -> Question:
    """Stars by their new word, in colours, motions and places of their own."""
    rng = np.random.default_rng([seed, 2])
    return _question("a star", ("shape",), _stars(count, rng), rng, noun=TRIGGER, seed=1000)


def ask_for_known(*, count: int, seed: int) -> Question:
    """What the model knew before."""
    rng = np.random.default_rng([seed, 3])
    known = known_combinations(held_out=False)
    chosen = [known[index] for index in rng.choice(len(known), count, replace=False)]
    return _question("what it knew", ("colour", "shape", "motion"), chosen, rng, noun="", seed=2000)


def _question(
    name: str, parts: tuple[str, ...], wanted: Sequence[Combination], rng: np.random.Generator, *, noun: str, seed: int
) -> Question:
    grounds = rng.choice(list(BACKGROUNDS), len(wanted))
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
