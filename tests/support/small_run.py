"""A run of a tiny transformer over clips of noise; also a program, to be killed and to be started many times at once.

python small_run.py FOLDER [key=value ...]     settings of the loop, as in a TOML file
"""

import sys
from pathlib import Path

import torch
from encoders import NUM_TOKENS, WIDTH, Encoders, precompute
from films import write_film
from tiny_models import build_transformer

from reelora.adapters import LoraSpec
from reelora.data import CachedClips, CacheSettings, ClipSettings, list_clips
from reelora.lora import attach
from reelora.settings import overridden
from reelora.train import Diffusion, Lesson, LoopConfig, Team, train

__all__ = ["CONFIG", "make_config", "make_diffusion", "make_lesson", "make_transformer", "write_cache"]

CONFIG = LoopConfig.of(
    {
        "steps": 6,
        "batch_size": 2,
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    }
)


def make_config(*overrides: str) -> LoopConfig:
    return LoopConfig.of(overridden(CONFIG.model_dump(mode="json"), overrides))


def make_transformer(**changes):
    torch.manual_seed(0)
    shape = {"in_channels": 3, "out_channels": 3, "text_embed_dim": WIDTH, "max_text_seq_length": NUM_TOKENS}
    return build_transformer("5B", **shape | changes).requires_grad_(False)


def make_diffusion() -> Diffusion:
    from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

    return Diffusion.of(CogVideoXDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))


def write_cache(folder: Path) -> CachedClips:
    """Five films of nine frames of 32x32."""
    folder.mkdir(exist_ok=True)
    for index in range(5):
        write_film(folder / f"{index}.mp4", 9, noise=index)
        (folder / f"{index}.txt").write_text(f"clip number {index}")
    settings = CacheSettings(
        clip=ClipSettings(num_frames=9, height=32, width=32, fps=8),
        vae_fingerprint="tiny",
        text_fingerprint="tiny",
        num_text_tokens=NUM_TOKENS,
    )
    precompute(list_clips(folder), folder / "cache", settings, **Encoders().factories())
    return CachedClips(folder / "cache")


def make_lesson(cache: CachedClips) -> Lesson:
    """Four clips to learn from and one held out."""
    transformer = make_transformer()
    attach(transformer, LoraSpec(rank=4, alpha=4), seed=3)
    clips, held_out = cache.split(1, seed=0)
    return Lesson(model=transformer, clips=clips, held_out=held_out, diffusion=make_diffusion(), identity={"base": "tiny"})


def main(cache: str, folder: str, *overrides: str) -> None:
    """One start of a run, alone or as one of the processes that the environment names."""
    torch.set_num_threads(1)
    config = make_config(*overrides)
    with Team.joined(torch.device("cpu")) as team:
        train(make_lesson(CachedClips(Path(cache))), config, Path(folder), team=team)


if __name__ == "__main__":
    main(*sys.argv[1:])
