"""The learning rate over a run."""

import pytest
import torch
from diffusers.optimization import SchedulerType, get_scheduler

from reelora.errors import ConfigError
from reelora.train import LoopConfig, OptimizerConfig


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.5]),
        ("cosine", [0.5, 1.0, 1.0, 0.5]),
        ("cosine_with_restarts", [0.5, 1.0, 1.0, 1.0]),
        ("polynomial", [0.5, 1.0, 1.0, 0.25]),
    ],
)
def test_the_rate_warms_up_and_follows_its_schedule(schedule, expected):
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule=schedule, cycles=2, power=2)
    config = LoopConfig(steps=4, optimizer=optimizer)
    assert [config.learning_rate(step) for step in range(4)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_after_the_warm_up_the_rate_is_that_of_diffusers(schedule):
    warmup, steps = 3, 20
    name = SchedulerType({"constant": "constant_with_warmup"}.get(schedule, schedule))
    config = LoopConfig(
        steps=steps, optimizer=OptimizerConfig(learning_rate=0.5, warmup_steps=warmup, schedule=schedule, cycles=2, power=3)
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, num_cycles=2, power=3)
    rates = []
    for _ in range(steps):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ends_at = 1e-7 if schedule == "polynomial" else 0  # where theirs ends instead of at zero
    ours = [config.learning_rate(step) for step in range(steps)]
    assert ours[warmup:] == pytest.approx(rates[warmup:], abs=max(ends_at, 1e-12))


def test_prodigy_with_the_rate_of_adam_is_refused():
    with pytest.raises(ConfigError, match="learning_rate = 1"):
        OptimizerConfig.of({"kind": "prodigy"})
