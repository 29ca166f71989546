"""Encoders give what the stock pipeline and the VAE give, in the layout and scale of training."""

import pytest
import torch
from einops import rearrange

from reelora.components import encode_prompts, encode_video, load_components, to_video
from reelora.errors import ComponentError, ConfigError

PROMPTS = ["a red star moves", "", "cab"]


@pytest.fixture(scope="module")
def parts(models):
    return load_components(models["5B"], dtype=torch.float32)


def test_prompt_states_are_those_of_the_stock_pipeline(parts):
    encoded = encode_prompts(parts, PROMPTS)
    expected, _ = parts.pipeline().encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=8)
    assert torch.equal(encoded.states, expected)
    assert encoded.states.shape == (3, 8, 16)
    assert not encoded.states.requires_grad
    assert encoded.long == ()


def test_each_prompt_is_encoded_as_if_alone(parts):
    together = encode_prompts(parts, PROMPTS).states
    torch.testing.assert_close(together, torch.cat([encode_prompts(parts, [prompt]).states for prompt in PROMPTS]))


def test_long_prompts_are_cut_as_in_the_stock_pipeline_and_named(parts):
    long = "a red star moves a red star moves a"
    encoded = encode_prompts(parts, ["a star", long])
    expected, _ = parts.pipeline().encode_prompt([long], do_classifier_free_guidance=False, max_sequence_length=8)
    assert torch.equal(encoded.states[1:], expected)
    (cut,) = encoded.long
    assert (cut.prompt, cut.num_tokens, cut.kept_tokens) == (long, 10, 8)
    assert cut.lost == "moves a"
    assert str(cut) == "10 tokens, of which 8 are read; lost is 'moves a'"


def test_a_prompt_that_just_fits_is_not_long(parts):
    assert encode_prompts(parts, ["a red star moves a red star"]).long == ()


@pytest.fixture(scope="module")
def video():
    return torch.rand(2, 3, 9, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_latents_are_the_vaes_times_its_scale_with_frames_before_channels(parts, video):
    posterior = encode_video(parts, video)
    with torch.no_grad():
        reference = parts.vae.encode(video).latent_dist
    assert posterior.mean.shape == (2, 3, 4, 4, 4)
    assert torch.equal(posterior.mean, rearrange(reference.mean * 0.7, "b c f h w -> b f c h w"))
    assert torch.equal(posterior.std, rearrange(reference.std * 0.7, "b c f h w -> b f c h w"))


def test_a_sample_is_the_one_that_the_vae_draws_from_the_same_generator(parts, video):
    ours = encode_video(parts, video).sample(torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = parts.vae.encode(video).latent_dist.sample(torch.Generator().manual_seed(3)) * 0.7
    # The scale is applied before the sum rather than after: one rounding of float32 apart.
    torch.testing.assert_close(ours, rearrange(theirs, "b c f h w -> b f c h w"))


def test_the_pipeline_decodes_what_we_encode(parts, video):
    latents = encode_video(parts, video).mean
    with torch.no_grad():
        decoded = parts.pipeline().decode_latents(latents)
        direct = parts.vae.decode(parts.vae.encode(video).latent_dist.mean).sample
    torch.testing.assert_close(decoded, direct, rtol=1e-3, atol=1e-4)


def test_inverted_scales_concern_conditioning_images_and_not_clips(models, video):
    """The peers disagree about the image (times 0.7, 1 or 1 / 0.7); for the clip there is one answer."""
    parts = load_components(models["5B"], roles=["vae"], dtype=torch.float32)
    plain = encode_video(parts, video)
    parts.vae.register_to_config(invert_scale_latents=True)
    assert torch.equal(plain.mean, encode_video(parts, video).mean)


def test_a_bfloat16_vae_gives_float32_latents_that_training_can_keep(models, video):
    posterior = encode_video(load_components(models["5B"], roles=["vae"]), video)
    assert posterior.mean.dtype == posterior.std.dtype == torch.float32
    (posterior.mean.clone().requires_grad_() * posterior.std).sum().backward()


def test_frames_that_make_no_whole_latents_are_refused_with_the_nearest(parts):
    with pytest.raises(ConfigError, match=r"num_frames is 8, .* 5 or 9"):
        encode_video(parts, torch.zeros(1, 3, 8, 32, 32))


def test_encoders_of_roles_that_are_not_there_say_so(models, video):
    parts = load_components(models["5B"], roles=["tokenizer"])
    with pytest.raises(ComponentError, match=r"text_encoder of .* was not loaded"):
        encode_prompts(parts, PROMPTS)
    with pytest.raises(ComponentError, match=r"vae of .* was not loaded"):
        encode_video(parts, video)


def test_frames_of_files_become_pixels_between_minus_one_and_one():
    frames = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 4, 5, 3)
    video = to_video([frames])
    assert video.shape == (1, 3, 2, 4, 5)
    assert torch.equal(video[0, 0, :, 0, 0], torch.tensor([-1.0, 1.0]))
