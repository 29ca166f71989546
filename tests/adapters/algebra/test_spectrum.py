"""Laws of what the singular values say about a pair."""

import math

import pytest
import torch
from updates import Q, adapter_of, dense, pair_with, random_pair

from reelora.adapters import Pair
from reelora.adapters.algebra import resize, spectrum
from reelora.errors import AdapterError


def test_the_norm_is_that_of_the_dense_update_and_the_shares_are_all_of_it():
    pair = random_pair(0, scale=-0.3)
    facts = spectrum(pair)
    assert facts.norm == pytest.approx(float(dense(pair).norm()), rel=1e-12)
    assert float(facts.shares.sum()) == pytest.approx(1.0)


def test_the_effective_rank_is_what_resizing_to_99_percent_leaves():
    pair = pair_with([5.0, 1.0, 0.6, 0.1, 0.01])
    assert spectrum(pair).effective_rank == resize(adapter_of({Q: pair}), keep=0.99).pairs[Q].rank == 3


def test_of_an_unknown_scale_all_but_the_norm_is_known():
    pair = random_pair(0)
    unknown, known = spectrum(Pair(pair.a, pair.b, None)), spectrum(pair)
    assert unknown.norm is None
    assert unknown.effective_rank == known.effective_rank
    torch.testing.assert_close(unknown.shares, known.shares)


@pytest.mark.parametrize(
    "pair", [Pair(torch.ones(2, 3), torch.zeros(4, 2), 1.0), Pair(torch.zeros(2, 3), torch.ones(4, 2), None)]
)
def test_a_module_with_a_factor_of_zero_is_dead(pair):
    facts = spectrum(pair)
    assert (facts.is_dead, facts.effective_rank) == (True, 0)
    assert not facts.shares.any()
    assert not spectrum(random_pair(0)).is_dead


def test_nan_has_no_spectrum():
    with pytest.raises(AdapterError, match="NaN"):
        spectrum(Pair(torch.full((2, 3), math.nan), torch.ones(4, 2), None))
