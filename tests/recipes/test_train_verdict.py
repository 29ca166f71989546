"""The verdict is right: real runs learn, runs that cannot learn do not; many short runs on the pocket model."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from reelora import recipes
from reelora.generate import Clip
from reelora.pocket import FPS, draw, known_combinations, sample_scene
from reelora.recipes import Silent, TrainConfig
from reelora.recipes.demo.scenes import write_stars

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NUM_CLIPS, HELD_OUT, RUNS = 36, 12, 20


def settings(folder: Path, output: Path, seed: int, **optimizer) -> TrainConfig:
    return TrainConfig.of(
        {
            "output": output,
            "device": "cpu",
            "tensorboard": False,
            "data": {"folder": folder, "cache": folder.parent / "cache", "held_out": HELD_OUT, "encode_batch_size": 4},
            "lora": {"rank": 16, "alpha": 16, "target_modules": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]},
            "loop": {
                "steps": 24,
                "seed": seed,
                "batch_size": 4,
                "evaluate_every": 0,
                "optimizer": {"learning_rate": 2e-3, "warmup_steps": 5, **optimizer},
            },
        }
    )


def finding(config: TrainConfig) -> str:
    verdict = recipes.train(config, listener=Silent()).verdict
    assert verdict is not None
    print(config.output.name, verdict)  # noqa: T201  (pytest shows it when the count is wrong)
    return verdict.finding


def stars(folder: Path) -> Path:
    """Clips of the demo's new shape."""
    write_stars(folder, count=NUM_CLIPS, seed=0)
    return folder


def known(folder: Path) -> Path:
    """Clips like those that the pocket model was made with."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    combinations = known_combinations(held_out=False)
    for index in range(NUM_CLIPS):
        scene = sample_scene(rng, combinations[rng.integers(len(combinations))])
        path = folder / f"{index:02d}.mp4"
        Clip(frames=torch.from_numpy(draw(scene)), fps=FPS).save(path, crf=8)
        path.with_suffix(".txt").write_text(scene.caption())
    return folder


def with_shuffled_captions(folder: Path, config: TrainConfig) -> Path:
    """A copy whose clips to learn from have each other's captions; those that are held out keep their own."""
    cached = recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    seen, _ = cached.split(HELD_OUT, seed=config.loop.seed)
    captions = list(seen.captions)
    random.Random(config.loop.seed).shuffle(captions)
    other = dict(zip(seen.sources, captions, strict=True))
    copy = folder.with_name(f"shuffled-{config.loop.seed}")
    copy.mkdir()
    for film in folder.glob("*.mp4"):
        (copy / film.name).write_bytes(film.read_bytes())
        text = other.get(film.name, film.with_suffix(".txt").read_text())
        (copy / film.name).with_suffix(".txt").write_text(text)
    return copy


def test_runs_that_learn_a_new_shape_are_said_to_learn(tmp_path):
    clips = stars(tmp_path / "clips")
    found = [finding(settings(clips, tmp_path / f"real-{seed}", seed)) for seed in range(RUNS)]
    assert found.count("learning") >= 18


def test_runs_on_captions_of_other_clips_are_not_said_to_learn(tmp_path):
    """The shapes are known, so that nothing but what the captions say of them could be learned."""
    clips = known(tmp_path / "clips")
    found = []
    for seed in range(RUNS):
        config = settings(clips, tmp_path / f"null-{seed}", seed)
        found.append(
            finding(config.model_copy(update={"data": settings(with_shuffled_captions(clips, config), tmp_path, seed).data}))
        )
    assert found.count("learning") <= 1


def test_runs_without_a_rate_are_not_said_to_learn(tmp_path):
    clips = stars(tmp_path / "clips")
    found = [finding(settings(clips, tmp_path / f"still-{seed}", seed, learning_rate=1e-30)) for seed in range(3)]
    assert found == ["no evidence yet"] * 3
