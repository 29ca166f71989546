"""A tiny transformer with branches on it, and a cache to train on."""

import pytest
import torch
from encoders import NUM_TOKENS, WIDTH, Encoders
from films import write_film
from tiny_models import build_transformer

from reelora.adapters import LoraSpec
from reelora.data import CachedClips, CacheSettings, ClipSettings, list_clips, precompute
from reelora.lora import attach
from reelora.train import Diffusion, LoopConfig, OptimizerConfig


def make_transformer(**changes):
    torch.manual_seed(0)
    shape = {"in_channels": 3, "out_channels": 3, "text_embed_dim": WIDTH, "max_text_seq_length": NUM_TOKENS}
    return build_transformer("5B", **shape | changes).requires_grad_(False)


@pytest.fixture
def branched():
    """A new transformer with the same branches each time it is called."""

    def make(**changes):
        transformer = make_transformer(**changes)
        attach(transformer, LoraSpec(rank=4, alpha=4), seed=3)
        return transformer

    return make


@pytest.fixture
def diffusion():
    from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

    return Diffusion.of(CogVideoXDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> CachedClips:
    """Five films of nine frames of 32x32."""
    folder = tmp_path_factory.mktemp("films")
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


@pytest.fixture
def clips(cache):
    return cache.split(1, seed=0)[0]


@pytest.fixture
def held_out(cache):
    return cache.split(1, seed=0)[1]


@pytest.fixture
def config():
    return LoopConfig(
        steps=6,
        batch_size=2,
        checkpoint_every=2,
        evaluate_every=3,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    )
