"""What phases take agrees with what others have measured or counted, and with running everything."""

import pytest
import torch

from reelora.plan.costs import decode_cost, denoise_cost, encode_cost, fits_a_tile, text_cost
from reelora.plan.device import GIB

BF16 = torch.bfloat16
TERA = 10**12


@pytest.mark.parametrize(
    ("hub_id", "teraflops"), [("zai-org/CogVideoX-2b", 120.0), ("zai-org/CogVideoX-5b", 332.2)], ids=["2B", "5B"]
)
def test_a_step_has_the_arithmetic_that_its_formula_gives(published, hub_id, teraflops):
    """24 N d^2 + 4 N^2 d per block for N = 17,776 tokens of width d."""
    model = published(hub_id)
    cost = denoise_cost(model.denoiser, model.facts, (49, 480, 720), batch=1, dtype=BF16)
    assert sum(cost.flops.values()) / TERA == pytest.approx(teraflops, rel=0.01)


def test_blocks_that_are_not_run_are_counted_right(pocket):
    """The pocket model has six."""
    from reelora.plan.costs import at_dtype, denoiser_inputs
    from reelora.plan.trace import trace

    size, facts, frame = pocket.denoiser, pocket.facts, (17, 64, 64)
    network = at_dtype(size, BF16)
    inputs = lambda: denoiser_inputs(size.class_name, network.config, facts, frame, 2, BF16)  # noqa: E731
    with torch.no_grad():
        whole = trace(lambda: network(**inputs(), return_dict=False)[0])
    assert denoise_cost(size, facts, frame, batch=2, dtype=BF16) == whole


def test_chunks_that_are_not_run_are_counted_right(published):
    """The published VAE takes two latent frames at once: a long clip holds more pixels, and works no harder at any moment."""
    model = published("zai-org/CogVideoX-2b")
    short, long = (decode_cost(model.vae, model.facts, (frames, 64, 64), dtype=BF16, tiles=False) for frames in (17, 49))
    assert long.flops["convolution"] == pytest.approx(49 / 17 * short.flops["convolution"], rel=0.02)
    assert long.kept_bytes == 49 * 3 * 64 * 64 * 2
    assert long.peak_bytes - short.peak_bytes <= 4 * (long.kept_bytes - short.kept_bytes)


@pytest.mark.parametrize(("frame", "gibibytes"), [((49, 480, 720), 14.7), ((81, 768, 1360), 44.5)], ids=["1.0", "1.5"])
def test_decoding_takes_what_was_measured(published, frame, gibibytes):
    """Measured values: the docstring of MOST_PIXELS, components/tiling.py."""
    model = published("zai-org/CogVideoX1.5-5B" if frame[0] == 81 else "zai-org/CogVideoX-5b")
    cost = decode_cost(model.vae, model.facts, frame, dtype=BF16, tiles=False)
    assert cost.peak_bytes / GIB == pytest.approx(gibibytes, abs=0.1)


def test_tiles_are_for_frames_that_are_larger_than_one_and_take_less_memory_and_more_work(published):
    model = published("zai-org/CogVideoX-5b")
    frame = (49, 480, 720)
    whole, tiled = (decode_cost(model.vae, model.facts, frame, dtype=BF16, tiles=tiles) for tiles in (False, True))
    assert tiled.peak_bytes < 0.3 * whole.peak_bytes
    assert tiled.flops["convolution"] == pytest.approx(1.4 * whole.flops["convolution"], rel=0.02)
    assert not fits_a_tile(model.vae, frame)
    assert fits_a_tile(model.vae, (49, 240, 360))


def test_encoding_takes_less_than_half_of_decoding(published):
    model = published("zai-org/CogVideoX-5b")
    frame = (49, 480, 720)
    taken = [cost(model.vae, model.facts, frame, dtype=BF16, tiles=False).peak_bytes for cost in (encode_cost, decode_cost)]
    assert 0.3 < taken[0] / taken[1] < 0.5


@pytest.mark.parametrize("hub_id", ["zai-org/CogVideoX-5b-I2V", "zai-org/CogVideoX1.5-5B-I2V"])
def test_every_kind_of_transformer_can_be_asked(published, hub_id):
    model = published(hub_id)
    frame = (17, model.facts.default_height, model.facts.default_width)
    frame = (model.facts.default_frames, *frame[1:]) if model.facts.is_size_fixed else frame
    assert denoise_cost(model.denoiser, model.facts, frame, batch=1, dtype=BF16).flops["product"] > 0


def test_stable_diffusion_can_be_asked_too(published):
    model = published("stable-diffusion-v1-5/stable-diffusion-v1-5")
    frame = (1, 512, 512)
    assert denoise_cost(model.denoiser, model.facts, frame, batch=2, dtype=torch.float16).flops["convolution"] > 0
    assert decode_cost(model.vae, model.facts, frame, dtype=torch.float16, tiles=False).kept_bytes == 3 * 512 * 512 * 2
    assert text_cost(model.text_encoders[0], model.facts, torch.float16).peak_bytes > 0
