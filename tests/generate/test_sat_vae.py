"""The VAE as SAT uses it."""

import pytest
import torch
from einops import rearrange
from oracle import oracle_folders, read_vae
from tiny_models import build_vae

from reelora.catalog import MODELS
from reelora.generate.sat import decode, encode, image_latents

FACTS = {facts.name: facts for facts in MODELS}
OF_10, OF_15 = FACTS["CogVideoX-5B"], FACTS["CogVideoX1.5-5B"]
BAR = 2e-5
SAT_ROUNDING = 2.5e-5
"""How far SAT's own decode of 1.5 lies from the same in float64, of values up to 14; ours is 1.5e-5 away."""


@pytest.fixture(scope="module")
def vae():
    return build_vae().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def recorded():
    """The VAE of the recordings and the tensors, where they are here (tests/golden/README.md says why they may not be)."""
    return [read_vae(folder) for folder in oracle_folders("vae")]


def by_frame(latents):
    return rearrange(latents, "b c f h w -> b f c h w")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- against the original code


@pytest.mark.parametrize("clip", ["img1f", "vid9f", "vid17f"])
def test_whole_clips_are_encoded_as_by_sat(recorded, clip):
    for vae, tensors in recorded:
        posterior = encode(vae, tensors[f"{clip}.pixels"])
        sample = posterior.mean + posterior.std * by_frame(tensors[f"{clip}.encode_first_stage_noise"])
        torch.testing.assert_close(sample, by_frame(tensors[f"{clip}.encode_first_stage"]), rtol=0, atol=BAR)


@pytest.mark.parametrize(("latents", "frames"), [("lat1.z", "lat1.decode_whole"), ("chunk5.z", "chunk5.decode_chunked")])
def test_latents_of_10_are_decoded_as_by_sat(recorded, latents, frames):
    for vae, tensors in recorded:
        scaled = by_frame(tensors[latents]) * vae.config.scaling_factor
        torch.testing.assert_close(decode(vae, scaled, OF_10), tensors[frames], rtol=0, atol=BAR)


@pytest.mark.parametrize(("clip", "facts", "bar"), [("dfs3", OF_10, BAR), ("dfs4", OF_15, SAT_ROUNDING), ("dfs6", OF_15, BAR)])
def test_scaled_latents_are_decoded_as_by_sat(recorded, clip, facts, bar):
    for vae, tensors in recorded:
        video = decode(vae, by_frame(tensors[f"{clip}.z_scaled"]), facts)
        torch.testing.assert_close(video, tensors[f"{clip}.decode_first_stage"], rtol=0, atol=bar)


def test_the_latents_of_an_image_are_those_of_sat(recorded):
    for vae, tensors in recorded:
        posterior = encode(vae, tensors["img1f.pixels"])
        scaled = posterior.mean + posterior.std * by_frame(tensors["img1f.encode_first_stage_noise"])
        expected = by_frame(tensors["img1f.encode_first_stage"])
        of_10, of_15 = (image_latents(scaled, facts, num_latent_frames=3) for facts in (OF_10, OF_15))
        torch.testing.assert_close(of_10[:, :1], expected, rtol=0, atol=BAR)
        torch.testing.assert_close(of_15[:, :1], expected / 0.7, rtol=0, atol=BAR)


# ---- laws


def test_a_clip_that_diffusers_encodes_in_one_piece_is_encoded_alike_and_a_longer_one_is_not(vae):
    for num_frames, is_alike in ((9, True), (17, False)):
        video = drawn(1, 3, num_frames, 16, 16)
        stock = by_frame(vae.encode(video).latent_dist.mean) * vae.config.scaling_factor
        assert torch.equal(encode(vae, video).mean, stock) == is_alike
        assert vae.num_sample_frames_batch_size == 8


def test_latents_of_10_are_decoded_as_by_diffusers_also_where_tiles_were_switched_on(vae):
    latents = drawn(1, 5, 4, 4, 4)
    stock = vae.decode(1 / vae.config.scaling_factor * rearrange(latents, "b f c h w -> b c f h w")).sample
    vae.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=16)
    try:
        assert torch.equal(decode(vae, latents, OF_10), stock)
        assert vae.use_tiling
    finally:
        vae.disable_tiling()


def test_latents_of_15_are_decoded_without_the_first_and_four_frames_come_of_every_other(vae):
    latents = drawn(2, 6, 4, 2, 2)
    video = decode(vae, latents, OF_15)
    assert video.shape == (2, 3, 20, 16, 16)
    other_start = torch.cat([drawn(2, 1, 4, 2, 2, seed=1), latents[:, 1:]], dim=1)
    assert torch.equal(decode(vae, other_start, OF_15), video)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vae.modules())


def test_of_two_latent_frames_there_is_no_first_and_diffusers_agrees_bit_for_bit(vae):
    latents = drawn(1, 3, 4, 2, 2)
    stock = vae.decode(1 / vae.config.scaling_factor * rearrange(latents[:, 1:], "b f c h w -> b c f h w")).sample
    assert torch.equal(decode(vae, latents, OF_15), stock)


def test_a_long_clip_of_15_goes_in_ten_chunks_of_which_the_first_are_longer(vae):
    sizes = []
    hook = vae.decoder.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[2]))
    decode(vae, drawn(1, 26, 4, 2, 2), OF_15)
    hook.remove()
    assert sizes == [3] * 5 + [2] * 5


def test_zeros_follow_the_latents_of_an_image(vae):
    latents = drawn(2, 1, 4, 2, 2)
    beside = image_latents(latents, OF_10, num_latent_frames=3)
    assert torch.equal(beside[:, :1], latents)
    assert beside.shape == (2, 3, 4, 2, 2)
    assert not beside[:, 1:].any()
    assert torch.equal(image_latents(latents, OF_15, num_latent_frames=3)[:, :1], latents / 0.7)
