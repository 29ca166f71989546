"""Laws of an adapter as data."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reelora.adapters import Adapter, Pair, largest_difference, relative_difference
from reelora.errors import AdapterError, ConfigError, MismatchError, UnknownScaleError

Q = "transformer.transformer_blocks.0.attn1.to_q"


def bare(pairs, **fields):
    return Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test", **fields)


def test_delta_is_the_scaled_product_in_float32(make):
    for dtype in (torch.float32, torch.bfloat16):
        adapter = make(dtype=dtype)
        pair = adapter.pairs[Q]
        assert torch.equal(adapter.delta(Q), 0.5 * (pair.b.float() @ pair.a.float()))


def test_delta_of_an_unknown_name_hints_at_the_nearest(adapter):
    with pytest.raises(ConfigError, match=r"did you mean 'transformer\.transformer_blocks\.0\.attn1\.to_q'"):
        adapter.delta("transformer.transformer_blocks.0.attn1.to_qq")


def test_without_a_scale_it_can_be_looked_at_but_not_used(adapter):
    unknown = bare({name: Pair(pair.a, pair.b, None) for name, pair in adapter.pairs.items()})
    assert (unknown.ranks, unknown.roles, unknown.num_parameters) == ((4,), ("transformer",), 4 * 4 * (8 + 6))
    with pytest.raises(UnknownScaleError, match=r"a test; 4 of 4 pairs, rank 4.*alpha=.*producer="):
        unknown.delta(Q)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_found_before_use(adapter, value):
    a = adapter.pairs[Q].a.clone()
    a[0, 0] = value
    sick = bare({**adapter.pairs, Q: Pair(a, adapter.pairs[Q].b, 1.0)})
    with pytest.raises(AdapterError, match=rf"1 of 4 pairs hold NaN or infinite values: {Q}"):
        sick.check_usable()


@pytest.mark.parametrize(
    ("a", "b"), [((4, 8), (6, 3)), ((4, 8, 1), (6, 4)), ((8,), (6, 4)), ((0, 8), (6, 0)), ((4, 0), (6, 4)), ((4, 8), (0, 4))]
)
def test_factors_that_do_not_fit_are_no_pair(a, b):
    with pytest.raises(AdapterError, match=r"A is .* and B"):
        Pair(torch.ones(a), torch.ones(b), 1.0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_factors_that_are_no_floating_point_numbers_are_no_pair(dtype):
    with pytest.raises(AdapterError, match=f"{dtype}.*floating point"):
        Pair(torch.ones(4, 8, dtype=dtype), torch.ones(6, 4), 1.0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_of_eight_bits_are_computed_with_as_bfloat16_which_has_all_their_values(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    a = every[torch.isfinite(every.float())][None]
    pair = Pair(a, torch.ones(6, 1), 1.0)
    assert (pair.a.dtype, pair.dtype, pair.is_finite) == (torch.bfloat16, dtype, True)
    assert torch.equal(pair.a.float(), a.float())
    assert not Pair(every[None], torch.ones(6, 1), 1.0).is_finite
    adapter = bare({Q: pair})
    assert adapter.size_bytes == a.numel() + 6 * 4
    assert torch.equal(adapter.delta(Q), a.float().expand(6, -1))


def test_an_adapter_never_changes(adapter):
    with pytest.raises(dataclasses.FrozenInstanceError):
        adapter.layout = "kohya"
    with pytest.raises(TypeError):
        adapter.pairs[Q] = None
    assert adapter.with_provenance(data="1").provenance == {"data": "1"}
    assert adapter.provenance == {}


def test_what_is_no_adapter_is_refused_at_birth(adapter):
    with pytest.raises(AdapterError, match="no pairs"):
        bare({})
    with pytest.raises(AdapterError, match=r"2 names do not begin with a role[\s\S]*provenance"):
        bare({"blocks.0.to_q": adapter.pairs[Q], "unet": adapter.pairs[Q]}, provenance={"seed": 3})


@settings(deadline=None)
@given(
    rank=st.integers(1, 9),
    other=st.integers(1, 9),
    seed=st.integers(0, 99),
    scale=st.floats(-3, 3).filter(lambda s: abs(s) > 1e-3),
)
def test_the_difference_through_the_cores_is_that_of_the_dense_updates(rank, other, seed, scale):
    draw = torch.Generator().manual_seed(seed)
    left = Pair(torch.randn(rank, 5, generator=draw), torch.randn(7, rank, generator=draw), scale)
    right = Pair(torch.randn(other, 5, generator=draw), torch.randn(7, other, generator=draw), 0.5)
    one, two = scale * left.b.double() @ left.a.double(), 0.5 * right.b.double() @ right.a.double()
    assert relative_difference(left, right) == pytest.approx(((one - two).norm() / one.norm()).item(), rel=1e-9)
    assert relative_difference(left, left) == 0.0


def test_the_same_update_written_another_way_differs_by_rounding_only():
    pair = Pair(torch.randn(4, 64), torch.randn(32, 4), 0.5)
    assert relative_difference(pair, Pair(pair.a, pair.b * 0.5, 1.0)) < 1e-12
    assert relative_difference(pair, Pair(pair.a.bfloat16(), pair.b, 0.5)) == pytest.approx(2**-9, rel=0.5)


def test_an_update_of_zero_equals_only_zero():
    zero, one = Pair(torch.ones(2, 3), torch.zeros(3, 2), 1.0), Pair(torch.ones(1, 3), torch.ones(3, 1), 1.0)
    assert relative_difference(zero, Pair(torch.zeros(1, 3), torch.ones(3, 1), 1.0)) == 0.0
    assert relative_difference(zero, one) == float("inf")


def test_adapters_of_different_modules_cannot_be_compared(adapter):
    with pytest.raises(MismatchError, match="3 modules are in only one"):
        largest_difference(adapter, bare({Q: adapter.pairs[Q]}))
    with pytest.raises(MismatchError, match="different modules"):
        relative_difference(adapter.pairs[Q], Pair(torch.ones(1, 8), torch.ones(5, 1), 1.0))
