"""Which noise levels are seen, and how much they count."""

import pytest
import torch

from reelora.train import WEIGHTS, LoopConfig, TimestepConfig, seen_shares
from reelora.train.batches import Batches
from reelora.train.draws import generator_for
from reelora.train.timesteps import draw_timestep

NUM = 1000


def draws(config, count):
    return torch.stack(
        [
            draw_timestep(config, num_timesteps=NUM, seed=0, visit=visit, generator=generator_for(0, visit))
            for visit in range(count)
        ]
    )


def test_uniform_draws_are_those_of_randint():
    expected = torch.stack([torch.randint(NUM, (), generator=generator_for(0, visit)) for visit in range(50)])
    assert torch.equal(draws(TimestepConfig(), 50), expected)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_stratified_draws_fill_every_sixteenth_of_the_distribution_once(distribution):
    config = TimestepConfig(distribution=distribution, stratified=True)
    edges = torch.arange(1, 16) / 16
    if distribution == "logit_normal":
        edges = torch.sigmoid(torch.special.ndtri(edges.double()))
    for block in draws(config, 64).split(16):
        strata = torch.searchsorted((edges * NUM).double().contiguous(), block.double() + 0.5)
        assert sorted(strata.tolist()) == list(range(16))


def test_logit_normal_draws_have_its_median_and_spread():
    logits = torch.logit((draws(TimestepConfig(distribution="logit_normal", mean=0.5, std=0.8), 2000) + 0.5) / NUM)
    assert float(logits.median()) == pytest.approx(0.5, abs=0.06)  # of 2000 draws the median is good to 0.02
    assert float(logits.std()) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("config", [TimestepConfig(), TimestepConfig(distribution="logit_normal", mean=1)])
def test_the_plot_shows_what_is_drawn(config):
    shown = seen_shares(config, num_timesteps=NUM, num_bins=4)
    drawn = torch.bincount(draws(config, 2000) * 4 // NUM, minlength=4) * 4 / 2000
    torch.testing.assert_close(shown.double(), drawn.double(), atol=0.12, rtol=0)  # 500 draws in a bin: good to 5 %


def test_min_snr_weighs_the_clip_by_the_smaller_of_snr_and_gamma():
    """Its weight on the velocity times SNR + 1 is that on the clip; arXiv:2303.09556, section 3.4."""
    snr = torch.tensor([0.0, 0.5, 5.0, 100.0])
    assert (WEIGHTS["min_snr"](snr, 5.0) * (snr + 1)).tolist() == pytest.approx([0.0, 0.5, 5.0, 5.0])
    assert WEIGHTS["flat"](snr, 5.0).tolist() == [1.0] * 4


def test_weights_and_distribution_change_the_loss_but_not_the_noise(run, config, clips):
    weighted = config.model_copy(update={"timesteps": TimestepConfig(weighting="min_snr", snr_gamma=1)})
    assert run("plain")[2] != run("weighted", weighted)[2]
    one, other = (Batches(clips, c, num_timesteps=NUM, frame_group=1).read(0) for c in (config, weighted))
    assert torch.equal(one.noise, other.noise)


def test_a_run_with_other_timesteps_is_another_run():
    assert LoopConfig().identity() != LoopConfig(timesteps=TimestepConfig(stratified=True)).identity()
