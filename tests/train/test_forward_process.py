"""The forward process and the loss against diffusers' own."""

import pytest
import torch
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

from reelora.train import Diffusion
from reelora.train.diffusion import per_clip_error

SHIFTS = [1.0, 3.0]
"""Of CogVideoX-5B and of 2B."""


@pytest.fixture(params=SHIFTS)
def scheduler(request):
    return CogVideoXDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=request.param,
    )


@pytest.fixture
def sample():
    draw = torch.Generator().manual_seed(4)
    clean, noise, predicted = (torch.randn(3, 2, 4, 4, 4, generator=draw) for _ in range(3))
    return clean, noise, predicted, torch.tensor([0, 500, 980])


def test_noisy_latents_and_velocity_equal_those_of_the_scheduler(scheduler, sample):
    clean, noise, _, times = sample
    diffusion = Diffusion.of(scheduler)
    assert torch.equal(diffusion.noisy(clean, noise, times), scheduler.add_noise(clean, noise, times))
    assert torch.equal(diffusion.velocity(clean, noise, times), scheduler.get_velocity(clean, noise, times))


def test_the_last_step_is_pure_noise_whose_velocity_is_the_negative_clip(scheduler, sample):
    clean, noise, _, _ = sample
    diffusion, last = Diffusion.of(scheduler), torch.tensor([999] * 3)
    torch.testing.assert_close(diffusion.noisy(clean, noise, last), noise)
    torch.testing.assert_close(diffusion.velocity(clean, noise, last), -clean)


def test_the_loss_equals_the_weighted_one_of_cogvideos_trainer(scheduler, sample):
    """There the model's output becomes a clip, compared with weight 1 / (1 - a); finetune/models/cogvideox_t2v."""
    clean, noise, predicted, times = sample
    diffusion = Diffusion.of(scheduler)
    noisy = diffusion.noisy(clean, noise, times)
    guess = scheduler.get_velocity(predicted, noisy, times)
    weight = 1 / (1 - scheduler.alphas_cumprod[times]).view(-1, 1, 1, 1, 1)
    theirs = (weight * (guess - clean) ** 2).flatten(1).mean(1)
    ours = per_clip_error(predicted, diffusion.velocity(clean, noise, times))
    torch.testing.assert_close(ours, theirs.float(), rtol=2e-4, atol=1e-5)  # theirs divides by 1 - a, which is 0.00085 at t = 0
