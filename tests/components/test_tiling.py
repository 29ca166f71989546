"""Large clips go through the VAE in tiles, small ones exactly as always."""

from typing import Any

import pytest
import torch
from tiny_models import build_vae

from reelora.components import encode_video, load_components, needs_tiles, tiled, tiling

SIZE: Any = {"num_frames": 1, "height": 240, "width": 208}

LIKENESS = 0.9
"""Least correlation of tiled and whole: a random VAE normalises each tile by itself and sees far beyond its borders."""


@pytest.fixture
def vae():
    """A VAE whose user prefers smaller tiles, so that the clip makes four."""
    torch.manual_seed(0)
    vae = build_vae().eval()
    vae.enable_tiling(tile_sample_min_height=144, tile_sample_min_width=120)
    vae.disable_tiling()
    return vae


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(tiling, "MOST_PIXELS", 0)


def settings_of(vae):
    return {name: value for name, value in vars(vae).items() if "til" in name}


def likeness(one, other):
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]


@torch.no_grad()
def test_tiles_give_nearly_what_the_whole_gives_and_the_settings_are_as_before(vae, all_are_large):
    video = torch.rand(1, 3, 1, 240, 208, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = settings_of(vae)
    latents = vae.encode(video).latent_dist.mean
    frames = vae.decode(latents).sample
    with tiled(vae, **SIZE):
        tiled_latents = vae.encode(video).latent_dist.mean
        tiled_frames = vae.decode(latents).sample
    assert settings_of(vae) == before
    for whole, in_tiles in ((latents, tiled_latents), (frames, tiled_frames)):
        assert whole.shape == in_tiles.shape
        assert not torch.equal(whole, in_tiles)
        assert likeness(whole, in_tiles) > LIKENESS


def test_the_settings_are_as_before_whatever_ends_the_block(vae, all_are_large):
    before = settings_of(vae)

    def stop():
        assert vae.use_tiling
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tiled(vae, **SIZE):
        stop()
    assert settings_of(vae) == before


def test_tiles_that_the_user_has_switched_on_stay_on(vae):
    vae.enable_tiling()
    assert needs_tiles(vae, **SIZE)
    with tiled(vae, **SIZE):
        assert vae.use_tiling
    assert vae.use_tiling


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "expected"),
    [
        (17, 64, 64, False),
        (49, 240, 360, False),
        (1, 480, 720, False),
        (9, 480, 720, True),
        (49, 480, 720, True),
        (49, 720, 480, True),
        (81, 768, 1360, True),
    ],
)
def test_tiles_are_for_clips_that_are_large_at_every_moment_and_larger_than_a_tile(num_frames, height, width, expected):
    """The VAE takes eight frames at once, so the length of a clip costs next to nothing."""
    vae = build_vae()
    vae.enable_tiling(tile_sample_min_height=240, tile_sample_min_width=360)  # as the published VAE has them
    vae.disable_tiling()
    assert needs_tiles(vae, num_frames=num_frames, height=height, width=width) is expected


def test_clips_are_encoded_in_tiles_only_if_they_are_large(models, monkeypatch):
    parts = load_components(models["5B"], roles=["vae"], dtype=torch.float32)
    video = torch.rand(1, 3, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = encode_video(parts, video).mean
    monkeypatch.setattr(tiling, "MOST_PIXELS", 0)
    assert not torch.equal(whole, encode_video(parts, video).mean)
    assert not parts.vae.use_tiling
