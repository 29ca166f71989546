"""Who makes the steps, and the running mean of what they make."""

import sys

import pytest
import torch

from reelora.errors import ConfigError
from reelora.lora import collect
from reelora.train import OptimizerConfig, read_verdicts, weights_and_biases
from reelora.train.optimizers import make_optimizer
from reelora.train.shown import RunningMean


@pytest.fixture
def prodigy(config):
    return config.model_copy(
        update={"optimizer": OptimizerConfig(kind="prodigy", learning_rate=1.0, warmup_steps=2), "ema_decay": 0.8}
    )


def test_prodigy_with_a_running_mean_resumes_bit_for_bit(run, prodigy):
    _, whole, losses = run("whole", prodigy)
    seen = []
    run("halves", prodigy, on_step=lambda report: seen.append(report.step), should_stop=lambda: seen[-1:] == [3])
    _, resumed, resumed_losses = run("halves", prodigy)
    assert resumed_losses == losses
    one, other = collect(whole).pairs, collect(resumed).pairs
    assert all(torch.equal(one[name].b, other[name].b) for name in one)


def test_prodigy_finds_a_rate_of_its_own(run, prodigy):
    _, model, _ = run(settings=prodigy.model_copy(update={"steps": 4}))
    assert all(pair.b.isfinite().all() and pair.b.abs().max() > 0 for pair in collect(model).pairs.values())


@pytest.mark.parametrize(("kind", "package"), [("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes")])
def test_a_package_that_is_not_installed_is_named(monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        make_optimizer(OptimizerConfig(kind=kind, learning_rate=1.0), [torch.nn.Parameter(torch.zeros(2))])


def test_weights_and_biases_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        weights_and_biases("project")


@pytest.mark.gpu
def test_adamw_in_8_bits_resumes_bit_for_bit(run, branched, config):
    """Its moments are bytes with a scale per block; all of them are in the checkpoint."""
    eight = config.model_copy(update={"optimizer": OptimizerConfig(kind="adamw8bit", warmup_steps=2)})
    _, _, losses = run("whole", eight, model=branched().to("cuda"))
    seen = []
    options = {"on_step": lambda report: seen.append(report.step), "should_stop": lambda: seen[-1:] == [3]}
    run("halves", eight, model=branched().to("cuda"), **options)
    assert run("halves", eight, model=branched().to("cuda"))[2] == losses


def test_the_running_mean_follows_its_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    mean, expected = RunningMean([weight], 0.9), 1.0
    for step in range(1, 60):
        with torch.no_grad():
            weight.fill_(float(step))
        mean.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(mean.values[0]) == pytest.approx(expected, rel=1e-5)


def test_a_running_mean_changes_no_step_but_what_is_measured_and_saved(run, config, tmp_path):
    _, plain, losses = run("plain")
    _, mean, mean_losses = run("mean", config.model_copy(update={"ema_decay": 0.9}))
    assert mean_losses == losses
    one, other = collect(plain).pairs, collect(mean).pairs
    assert not any(torch.equal(one[name].b, other[name].b) for name in one)
    figures = [read_verdicts(tmp_path / name)[-1].loss for name in ("plain", "mean")]
    assert figures[0] != figures[1]
