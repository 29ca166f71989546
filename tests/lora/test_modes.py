"""Evaluation is for a while, and every module is afterwards as it was."""

from typing import Any

import pytest
from torch import nn

from reelora.adapters import LoraSpec
from reelora.lora import attach, evaluating


def everything(model) -> list[Any]:
    """Every module, also the originals that branches hide."""
    modules = list(model.modules())
    return modules + [module.base for module in modules if hasattr(module, "base")]


@pytest.fixture
def mixed(model):
    """A model in training with a module at rest, a branch at rest over a training Linear, and the other way round."""
    attach(model, LoraSpec(rank=2, alpha=2))
    model.train()
    first, second, *_ = [module for module in model.modules() if hasattr(module, "base")]
    first.base.training, second.training = False, False
    next(module for module in model.modules() if isinstance(module, nn.LayerNorm)).eval()
    return model


def test_within_everything_rests_also_what_branches_hide(mixed):
    with evaluating(mixed):
        assert not any(module.training for module in everything(mixed))


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_afterwards_every_module_is_in_the_mode_that_it_was_in(mixed, failure):
    other = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    before = [module.training for network in (mixed, other) for module in everything(network)]
    assert len(set(before)) == 2
    try:
        with evaluating(mixed, other):
            assert not any(module.training for module in everything(other))
            if failure:
                raise failure
    except KeyboardInterrupt:
        pass
    assert [module.training for network in (mixed, other) for module in everything(network)] == before
