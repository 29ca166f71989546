"""Kill a run anywhere: the next start goes on, with the losses of the run that was never killed, bit for bit."""

import random
import shutil

import pytest
import torch
from processes import finish, kill_between, losses_of, start

from reelora.tensorio import open_tensors

STEPS = "steps=24"
TEAMS = {"alone": 1, "two processes": 2}


def weights(folder):
    return dict(open_tensors(folder / "checkpoints" / "step-000024" / "state.safetensors"))


@pytest.mark.parametrize(
    ("size", "accumulation", "kills"),
    [
        pytest.param(1, 2, 3, id="3 kills, accumulation"),
        pytest.param(1, 1, 20, id="20 kills", marks=pytest.mark.slow),
        pytest.param(1, 3, 20, id="20 kills, accumulation", marks=pytest.mark.slow),
        pytest.param(2, 2, 20, id="20 kills, two processes", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_a_run_that_is_killed_at_random_moments_equals_one_that_is_not(cache, tmp_path, size, accumulation, kills):
    """CogVideo's own trainer keeps the random state of the first process alone, and begins the epoch's clips again."""
    settings = [STEPS, f"gradient_accumulation={accumulation}", "ema_decay=0.9", "timesteps.stratified=true"]
    assert set(finish(start(cache.folder, tmp_path / "whole", *settings, size=size))) == {0}
    chance, killed = random.Random(kills), 0
    folder = tmp_path / "killed"
    while killed < kills:
        if not kill_between(start(cache.folder, folder, *settings, size=size), folder, chance):
            shutil.rmtree(folder)  # it came to its end: the remaining kills are for another life
        else:
            killed += 1
    ends = finish(start(cache.folder, folder, *settings, size=size))
    assert set(ends) == {0}
    assert losses_of(folder) == losses_of(tmp_path / "whole")
    one, other = weights(folder), weights(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
