"""Several processes share the forward passes of a step; the numbers do not depend on how many there are."""

from pathlib import Path

import pytest
import torch
from processes import finish, losses_of, start, start_team

from reelora.errors import ConfigError
from reelora.tensorio import open_tensors
from reelora.train import Team, read_metrics, read_verdicts

SETTINGS = ["steps=4", "gradient_accumulation=2", "evaluate_every=2"]


def state(folder, step=4):
    return dict(open_tensors(folder / "checkpoints" / f"step-{step:06d}" / "state.safetensors"))


@pytest.fixture(scope="module")
def both(cache, tmp_path_factory):
    """The folders of one run made by one process and by two."""
    folder = tmp_path_factory.mktemp("teams")
    for size in (1, 2):
        ends = finish(start(cache.folder, folder / str(size), *SETTINGS, size=size))
        assert set(ends) == {0}
    return folder / "1", folder / "2"


def test_the_gradients_of_two_processes_are_those_of_one_with_the_same_step(both):
    """Adam's first moments are means of the gradients so far."""
    one, two = (state(folder) for folder in both)
    moments = [name for name in one if name.endswith("exp_avg")]
    assert moments
    for name in moments:
        difference = (one[name] - two[name]).norm() / one[name].norm().clamp(min=1e-30)
        assert difference <= 1e-6, name


def test_losses_norms_rates_and_held_out_errors_are_the_same_too(both):
    """CogVideo's own trainer needs NVIDIA's library between processes; these sum on the CPU."""
    one, two = (read_metrics(folder / "metrics.jsonl") for folder in both)
    for name in ("loss", "grad_norm", "learning_rate", "held_out_loss"):
        ours, theirs = ([row[name] for row in rows if name in row] for rows in (one, two))
        assert ours
        assert theirs == pytest.approx(ours, rel=1e-6)
    assert read_verdicts(both[0])[-1].finding == read_verdicts(both[1])[-1].finding


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_may_go_on_with_another_number_of_processes(cache, both, tmp_path, first, then):
    finish(start(cache.folder, tmp_path, "steps=2", *SETTINGS[1:], size=first))
    ends = finish(start(cache.folder, tmp_path, *SETTINGS, size=then))
    assert set(ends) == {0}
    assert [step for step, _ in losses_of(tmp_path)] == [1, 2, 3, 4]
    ours, theirs = ([loss for _, loss in losses_of(folder)] for folder in (tmp_path, both[0]))
    assert ours == pytest.approx(theirs, rel=1e-6)


def sum_some_gradients(file):
    """Three weights, of which all processes, one, and none have a gradient."""
    with Team.joined(torch.device("cpu")) as team:
        weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
        weights[0].grad = torch.full((2,), 1.0 + team.rank)
        weights[1].grad = torch.full((2,), 5.0) if team.is_first else None
        team.sum_gradients(weights)
        Path(f"{file}{team.rank}").write_text(
            repr([None if weight.grad is None else weight.grad.tolist() for weight in weights])
        )


def test_a_weight_that_no_process_has_a_gradient_of_has_none_afterwards(tmp_path):
    """Alone, an optimizer passes over it: a zero would let it decay. Layers that SDXL does not hear are such."""
    assert finish(start_team(sum_some_gradients, str(tmp_path / "of"), size=2)) == [0, 0]
    assert [(tmp_path / f"of{rank}").read_text() for rank in range(2)] == ["[[3.0, 3.0], [5.0, 5.0], None]"] * 2


def test_passes_that_cannot_be_shared_evenly_are_refused(run, config):
    with pytest.raises(ConfigError, match="multiple of 2"):
        run(settings=config.model_copy(update={"gradient_accumulation": 3}), team=Team(size=2))


def test_alone_a_sum_is_the_value_itself():
    values = torch.arange(3.0)
    assert Team().sum(values) is values
    assert list(Team().share([1, 2, 3])) == [1, 2, 3]
    assert list(Team(rank=1, size=2).share([1, 2, 3])) == [2]
