"""Laws of the core: what a rank-sized matrix says of an update is what the dense update says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import dense, pair_with, random_pair

from reelora.adapters import Pair
from reelora.adapters.algebra import core, inner, singular_values
from reelora.errors import UnknownScaleError

PAIRS = st.builds(
    random_pair,
    st.integers(0, 999),
    rank=st.integers(1, 9),
    out=st.integers(1, 7),
    inp=st.integers(1, 7),
    scale=st.sampled_from([0.5, 1.0, -2.0, 0.0, 7.3]),
)


@given(PAIRS)
@settings(deadline=None)
def test_the_singular_values_are_those_of_the_dense_update(pair):
    expected = torch.linalg.svdvals(dense(pair))
    for values in (singular_values(pair), core(pair).values):
        # A rank over the size of the layer has no more singular values than the layer.
        torch.testing.assert_close(values, expected[: len(values)], rtol=1e-10, atol=1e-10)
        assert len(values) == min(pair.rank, *pair.shape)


@given(PAIRS)
@settings(deadline=None)
def test_the_core_holds_both_sides_of_the_decomposition(pair):
    held = core(pair)
    left, right = pair.b.double() @ held.left, held.right @ pair.a.double()
    squares = torch.diag(held.values.square())
    torch.testing.assert_close(left.mT @ left, squares, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(right @ right.mT, squares, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left.mT @ dense(pair), held.values[:, None] * right, rtol=1e-9, atol=1e-9)


def test_a_real_layer_in_float32_has_the_values_of_its_full_decomposition():
    pair = random_pair(0, rank=32, out=768, inp=768)
    full = torch.linalg.svdvals(0.5 * pair.b @ pair.a)[:32].double()
    assert float(((singular_values(pair) - full) / full).abs().max()) < 1e-5


def test_repeated_and_dead_directions_do_no_harm():
    pair = random_pair(1)
    twice = Pair(torch.cat([pair.a, pair.a]), torch.cat([pair.b, pair.b], dim=1), 0.25)
    torch.testing.assert_close(singular_values(twice)[:4], singular_values(pair), rtol=1e-12, atol=0)
    assert float(singular_values(twice)[4:].max()) < 1e-12
    assert not singular_values(Pair(pair.a, torch.zeros_like(pair.b), 1.0)).any()


def test_an_update_far_larger_than_memory_is_only_looked_at_through_its_factors():
    side = 300_000  # 360 GB if it were dense
    pair = Pair(torch.ones(1, side), torch.ones(side, 1), 2.0)
    assert float(singular_values(pair)[0]) == pytest.approx(2 * side)


@given(PAIRS.filter(lambda pair: pair.scale), st.integers(0, 99), st.integers(1, 5))
@settings(deadline=None)
def test_the_inner_product_is_that_of_the_dense_updates(pair, seed, rank):
    other = random_pair(seed, rank=rank, out=pair.shape[0], inp=pair.shape[1])
    assert inner(pair, other) == pytest.approx(float((dense(pair) * dense(other)).sum()), abs=1e-9)


def test_without_a_scale_there_is_no_update():
    unknown = random_pair(0, scale=None)
    for measure in (core, singular_values, lambda pair: inner(pair, pair)):
        with pytest.raises(UnknownScaleError, match=r"12 x 10, rank 4.*alpha=.*producer="):
            measure(unknown)


def test_small_singular_values_are_as_true_as_large_ones():
    values = [1.0, 1e-3, 1e-6]
    found = singular_values(pair_with(values, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-8, atol=0)


def test_what_a_rank_loses_is_known_far_below_rounding_of_the_whole():
    tails = core(pair_with([1.0, 1e-5, 1e-10], dtype=torch.float64)).tails
    expected = torch.tensor([1.0, 1e-10, 1e-20, 0.0], dtype=torch.float64)
    torch.testing.assert_close(tails, expected, rtol=1e-4, atol=0)
