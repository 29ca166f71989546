"""Laws of comparing: every number is the one that the dense updates have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import NAMES, Q, adapter_of, dense, pair_with, random_adapter, random_pair

from reelora.adapters import Pair
from reelora.adapters.algebra import diff, resize
from reelora.errors import MismatchError, UnknownScaleError


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.5, -1.0]))
@settings(deadline=None)
def test_difference_cosine_and_norms_are_those_of_the_dense_updates(seed, rank, other, scale):
    one, two = random_pair(seed, rank=rank), random_pair(seed + 1, rank=other, scale=scale)
    row = diff(adapter_of({Q: one}), adapter_of({Q: two})).modules[Q]
    e, f = dense(one), dense(two)
    assert row.norms == pytest.approx((float(e.norm()), float(f.norm())), rel=1e-10)
    assert row.relative_difference == pytest.approx(float((e - f).norm() / e.norm()), rel=1e-7)
    assert row.cosine == pytest.approx(float((e * f).sum() / (e.norm() * f.norm())), abs=1e-10)


def test_tiny_differences_are_not_lost_to_cancellation():
    pair = random_pair(0, out=64, inp=48)
    for size in (1e-3, 1e-6, 1e-9):
        other = Pair(pair.a.double(), pair.b.double() * (1 + size), pair.scale)
        row = diff(adapter_of({Q: pair}), adapter_of({Q: other})).modules[Q]
        assert row.relative_difference == pytest.approx(size, rel=1e-4)


def test_an_adapter_does_not_differ_from_itself():
    adapter = random_adapter(0)
    found = diff(adapter, adapter)
    assert (found.relative_difference, set(found.blocks.values())) == (0.0, {0.0})
    for row in found.modules.values():
        assert (row.cosine, row.output_overlap, row.input_overlap) == pytest.approx((1.0, 1.0, 1.0))


def test_overlap_is_one_for_a_part_of_the_space_and_zero_for_another_one():
    def pair(rows, columns):
        eye = torch.eye(6)
        return adapter_of({Q: Pair(eye[rows].clone(), eye[:, columns].clone(), 1.0)})

    within = diff(pair([0, 1, 2], [0, 1, 2]), pair([0, 1], [3, 4])).modules[Q]
    assert (within.input_overlap, within.output_overlap) == pytest.approx((1.0, 0.0))
    half = diff(pair([0, 1], [0, 1]), pair([1, 2], [1, 0])).modules[Q]
    assert (half.input_overlap, half.output_overlap) == pytest.approx((0.5, 1.0))


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles():
    one, two = pair_with([1.0, 1.0, 1.0], seed=1), pair_with([2.0, 2.0], seed=2)
    row = diff(adapter_of({Q: one}), adapter_of({Q: two})).modules[Q]
    left, right = (torch.linalg.svd(dense(pair)) for pair in (one, two))
    assert row.output_overlap == pytest.approx(float((left.U[:, :3].mT @ right.U[:, :2]).square().sum()) / 2, rel=1e-6)
    assert row.input_overlap == pytest.approx(float((left.Vh[:3] @ right.Vh[:2].mT).square().sum()) / 2, rel=1e-6)


def test_overlap_looks_at_what_matters_only():
    pair = pair_with([5.0, 4.0, 1e-4, 1e-5])
    row = diff(adapter_of({Q: pair}), resize(adapter_of({Q: pair}), rank=2)).modules[Q]
    assert (row.output_overlap, row.input_overlap) == pytest.approx((1.0, 1.0))


def test_strength_is_a_difference_and_direction_is_not():
    adapter = random_adapter(0)
    twice = adapter_of({name: Pair(pair.a, pair.b, 1.0) for name, pair in adapter.pairs.items()})
    row = diff(adapter, twice).modules[Q]
    assert (row.relative_difference, row.cosine) == pytest.approx((1.0, 1.0))


def test_the_blocks_that_differ_are_named():
    one = random_adapter(0)
    two = adapter_of({**one.pairs, NAMES[2]: random_pair(50)})
    blocks = diff(one, two).blocks
    assert [*blocks] == ["transformer.transformer_blocks.0", "transformer.transformer_blocks.1"]
    assert blocks["transformer.transformer_blocks.0"] == 0.0
    expected = (dense(one.pairs[NAMES[2]]) - dense(two.pairs[NAMES[2]])).norm()
    size = math.hypot(*(float(dense(one.pairs[name]).norm()) for name in NAMES[2:]))
    assert blocks["transformer.transformer_blocks.1"] == pytest.approx(float(expected) / size)


def test_modules_of_only_one_are_listed_and_count_as_zero_in_the_other():
    both = random_adapter(0)
    part = adapter_of({name: both.pairs[name] for name in NAMES[:2]})
    found = diff(both, part)
    assert [*found.modules] == [*NAMES[:2]]
    assert found.only_first == pytest.approx({name: float(dense(both.pairs[name]).norm()) for name in NAMES[2:]})
    assert found.blocks["transformer.transformer_blocks.1"] == 1.0
    size = math.hypot(*(float(dense(pair).norm()) for pair in both.pairs.values()))
    assert found.relative_difference == pytest.approx(math.hypot(*found.only_first.values()) / size)
    assert diff(part, both).only_second == found.only_first
    assert diff(part, both).blocks["transformer.transformer_blocks.1"] == math.inf


def test_an_update_of_zero_has_no_direction():
    dead = adapter_of({Q: Pair(torch.zeros(2, 10), torch.ones(12, 2), 1.0)})
    alive = adapter_of({Q: random_pair(0)})
    row = diff(dead, alive).modules[Q]
    assert (row.relative_difference, row.cosine, row.output_overlap, row.input_overlap) == (math.inf, 0.0, 0.0, 0.0)
    assert diff(alive, dead).modules[Q].relative_difference == pytest.approx(1.0)
    assert diff(dead, dead).relative_difference == 0.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(MismatchError, match="4 of 4 modules differ in shape"):
        diff(random_adapter(0), random_adapter(0, out=13))
    with pytest.raises(UnknownScaleError, match="adapter 2 of 2"):
        diff(random_adapter(0), random_adapter(0, scale=None))
