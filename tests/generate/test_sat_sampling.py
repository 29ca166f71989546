"""Sampling as SAT does it gives what the original code gave (see tests/golden/README.md)."""

from copy import deepcopy
from itertools import count

import pytest
import torch
from oracle import SAMPLES, fixed_noise
from sat import load_case

from reelora.components import rotary_positions
from reelora.errors import ConfigError
from reelora.generate import GenerateConfig
from reelora.generate.guidance import guidance_at
from reelora.generate.sat import SatNetwork, denoise, sat_schedule
from reelora.generate.steps import StepWatch, ignore_step, never_stop
from reelora.tensorio import open_tensors

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
}
SHIFTS = {"t2v_2b": 3.0, "t2v_5b": 1.0, "i2v_5b": 1.0}

ULP = 1.2e-7
"""One unit in the last place: square roots are rounded differently from one processor to the next."""

RECORDINGS = [
    "ddim_5_constant",
    "ddim_7_constant",
    "ddim_50_dynamic",
    "dpm_5_constant",
    "dpm_5_constant_zeronoise",
    "dpm_5_dynamic",
    "dpm_50_dynamic",
]
"""Solver, steps, guidance; where it says zeronoise, every draw but the first was zeros."""


@pytest.fixture(scope="module", params=SHIFTS)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def samples(case):
    return open_tensors(SAMPLES / f"{case}.safetensors")


@pytest.fixture(scope="module")
def transformer(case, tmp_path_factory):
    return load_case(case, tmp_path_factory.mktemp("base") / case).transformer


def schedule_of(case, steps):
    return sat_schedule(NOISE | {"snr_shift_scale": SHIFTS[case]}, steps=steps)


def config_of(recording):
    scheduler, steps, guidance_schedule, *_ = recording.split("_")
    asked = {"scheduler": scheduler, "steps": int(steps), "guidance_schedule": guidance_schedule, "guidance": 6.0}
    return GenerateConfig.of({"sampling": "sat", "num_frames": 9, "height": 48, "width": 64, **asked})


def recorded_noise(samples, *, is_zero):
    """The draws of a recording, in their order."""
    first = samples["init_noise"]
    numbers = count(-1)

    def draw():
        number = next(numbers)
        return first if number < 0 else torch.zeros_like(first) if is_zero else fixed_noise(number, first.shape)

    return draw, numbers


def network_of(transformer, samples):
    config = transformer.config
    positions = rotary_positions(config, num_latent_frames=3, height=6, width=8, device=torch.device("cpu"))
    return SatNetwork(
        transformer=transformer,
        states=samples["context"],
        negative_states=samples["uncond_context"],
        positions=positions if config.use_rotary_positional_embeddings else None,
        image_latents=samples.get("concat"),
    )


@torch.no_grad()
def denoised(network, schedule, draw, config):
    watch = StepWatch(total=config.steps, on_step=ignore_step, should_stop=never_stop)
    return denoise(network, schedule, draw, config, watch)


@pytest.mark.parametrize("steps", [5, 7, 20, 30, 50])
def test_timesteps_and_signals_are_those_of_sat(case, samples, steps):
    schedule = schedule_of(case, steps)
    assert list(schedule.timesteps) == samples[f"schedule_{steps}.timesteps"].tolist()
    torch.testing.assert_close(schedule.signals[:-1], samples[f"schedule_{steps}.signals"], rtol=0, atol=ULP)
    assert (schedule.signals[0], schedule.signals[-1]) == (0, 1)


@pytest.mark.parametrize("steps", [5, 7, 50])
def test_the_network_is_read_with_the_nearest_signal_of_the_whole_table(case, samples, steps):
    expected = samples[f"schedule_{steps}.network_signals"]
    torch.testing.assert_close(schedule_of(case, steps).network_signals, expected, rtol=0, atol=ULP)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_guidance_is_that_of_sat_to_the_last_bit(case, samples, recording):
    """The cosine's argument reaches 3 * 10^12, where one bit decides everything."""
    config = config_of(recording)
    told = [guidance_at(config, index=i, timestep=t) for i, t in enumerate(schedule_of(case, config.steps).timesteps)]
    assert told == samples[f"{recording}.guidance"].tolist()


@pytest.mark.parametrize("recording", RECORDINGS)
def test_latents_are_those_of_sat(case, samples, transformer, recording):
    """1e-4 is the bar; the network's own rounding in another order is 4e-5 after five steps."""
    config = config_of(recording)
    draw, numbers = recorded_noise(samples, is_zero=recording.endswith("zeronoise"))
    latents = denoised(network_of(transformer, samples), schedule_of(case, config.steps), draw, config)
    torch.testing.assert_close(latents, samples[f"{recording}.final"], rtol=0, atol=1e-4)
    draws_on_the_way = {"ddim": 0, "dpm": 1 + 2 * (config.steps - 2)}
    assert next(numbers) == draws_on_the_way[config.scheduler]


def test_the_latents_between_steps_are_float32_whatever_the_network_computes_in(case, samples, transformer):
    """Rounded to bfloat16 after each of many small steps, they would lose what the steps add."""
    half = {name: samples[name].bfloat16() for name in ("context", "uncond_context")}
    network = network_of(deepcopy(transformer).to(torch.bfloat16), {**samples, **half})
    config = config_of("ddim_5_constant")
    latents = denoised(network, schedule_of(case, 5), recorded_noise(samples, is_zero=False)[0], config)
    assert latents.dtype == torch.float32
    assert not torch.equal(latents, latents.bfloat16().float())
    assert (latents - samples["ddim_5_constant.final"]).abs().max() < 0.5  # bfloat16 keeps eight bits


def test_noise_that_cogvideox_was_not_trained_with_is_refused_with_all_that_is_odd_about_it():
    odd = NOISE | {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    with pytest.raises(
        ConfigError, match=r"prediction_type is 'epsilon'.*rescale_betas_zero_snr is False.*sampling='diffusers'"
    ):
        sat_schedule(odd, steps=5)
