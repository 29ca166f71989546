"""Fusing is one float32 sum of pristine weight and all updates, rounded once."""

import itertools
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from updates import random_pair

from reelora.adapters import Magnitude, Pair
from reelora.lora import dense_update, fuse_into, fused_rows, lost_share

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weight_of(out=12, inp=10, *, seed=0, dtype=torch.float32) -> Tensor:
    return (torch.randn(out, inp, generator=torch.Generator().manual_seed(seed)) * 0.5).to(dtype)


def with_norms(pair: Pair, axis: Any, made_by: Any) -> Pair:
    count = pair.shape[axis == "in"]
    values = torch.rand(count, generator=torch.Generator().manual_seed(5)) + 0.5
    return Pair(pair.a, pair.b, pair.scale, pair.kernel, Magnitude(values, axis, made_by))


def exact(weight: Tensor, uses) -> Tensor:
    """The sum in float64, as the formulas of the docstring say it."""
    weight = weight.double()
    return weight + sum(change(weight.flatten(1), pair, t).view(weight.shape) for pair, t in uses)


def change(w: Tensor, pair: Pair, t: float) -> Tensor:
    assert pair.scale is not None
    d = pair.scale * (pair.b.double() @ pair.a.double())
    if pair.magnitude is None:
        return t * d
    dim = 1 if pair.magnitude.axis == "out" else 0
    m = pair.magnitude.values.double().unsqueeze(dim)
    if pair.magnitude.made_by == "PEFT":
        return m * (w + t * d) / (w + t * d).norm(dim=dim, keepdim=True) - w
    return t * (m * (w + d) / (w + d).norm(dim=dim, keepdim=True) - w)


def real_size(adapter_dtype, *, size=1536, rank=128, seed=0):
    """A weight and a pair as large beside each other as a trained adapter is: |D| = 0.05 |W|."""
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(size, size, generator=draw) * 0.02).bfloat16()
    a, b = torch.randn(rank, size, generator=draw) / size**0.5, torch.randn(size, rank, generator=draw) * 0.01
    return weight, Pair(a.to(adapter_dtype), b.to(adapter_dtype), 0.5)


def misrounded(weight: Tensor, uses) -> float:
    fused = fuse_into(weight, uses)
    return float((fused != exact(weight, uses).to(weight.dtype)).double().mean())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adapter_dtypes", [(torch.bfloat16,), (torch.float32, torch.float16), (torch.bfloat16, torch.float64)])
def test_any_mix_of_dtypes_gives_the_float64_sum_rounded_once(dtype, adapter_dtypes):
    weight = weight_of(dtype=dtype)
    uses = [(random_pair(seed, dtype=kind), 0.7 - seed) for seed, kind in enumerate(adapter_dtypes)]
    expected = exact(weight, uses)
    bound = torch.finfo(dtype).eps / 2 * expected.abs() + 1e-5  # half a step, and float32 sums of values up to ten
    assert ((fuse_into(weight, uses).double() - expected).abs() <= bound).all()


B, F, H = torch.bfloat16, torch.float32, torch.float16
EIGHT = (0.8, 0.3, -1.1, 0.55, 1.0, 0.2, 0.9, -0.4)
MIXES = {
    "one": ([B], [0.8], 1e-5),
    "powers of two apart": ([B] * 2, [0.8, 0.4], 1e-5),
    "any two strengths": ([B] * 2, [0.8, 0.3], 1e-5),
    "weak beside strong": ([B] * 3, [2.0, 0.01, -1.5], 1e-5),
    "three of one strength": ([B] * 3, [0.8] * 3, 1e-5),
    "four of one strength": ([B] * 4, [0.8] * 4, 1e-5),
    "eight of one strength": ([B] * 8, [0.8] * 8, 1e-5),
    "eight strengths": ([B] * 8, EIGHT, 1e-5),
    "one in float32": ([F], [0.8], 2e-4),
    "two in float32": ([F] * 2, [0.8, 0.3], 2e-4),
    "eight in float32": ([F] * 8, EIGHT, 2e-4),
    "eight in float16": ([H] * 8, EIGHT, 2e-4),
    "bfloat16 beside float32": ([B, F], [0.8, 0.3], 2e-4),
    "every dtype": ([B, F, H, B, F], EIGHT[:5], 2e-4),
}
"""Dtypes of adapters, their strengths, and the share of weights that may be rounded to the wrong side."""


@pytest.mark.parametrize(("dtypes", "strengths", "bar"), MIXES.values(), ids=list(MIXES))
def test_hardly_any_weight_is_misrounded_whatever_is_fused_together(dtypes, strengths, bar):
    weight, _ = real_size(torch.bfloat16)
    draws = [[real_size(dtype, seed=seed)[1] for seed, dtype in enumerate(dtypes, start)] for start in (0, 20, 40)]
    shares = [misrounded(weight, list(zip(pairs, strengths, strict=True))) for pairs in draws]  # some twenty weights each
    # The bars are for one adapter at 0.8. Sums in float32 err in proportion to the update, which grows as independent ones do.
    size = sum(strength**2 for strength in strengths) ** 0.5 / 0.8
    assert sum(shares) / len(shares) <= bar * max(1, size)


def test_rounding_each_update_by_itself_misrounds_a_thousand_times_more():
    weight, pair = real_size(torch.bfloat16)
    twice = weight + ((pair.b.float() @ pair.a.float()) * 0.4).bfloat16()
    share = float((twice != exact(weight, [(pair, 0.8)]).bfloat16()).double().mean())
    assert share > 1000 * misrounded(weight, [(pair, 0.8)])


@pytest.mark.parametrize("strength", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_pefts_merge_in_float32_is_ours(layer, use_dora, strength):
    net = nn.Module()
    torch.manual_seed(0)
    net.layer = nn.Linear(10, 12) if layer == "linear" else nn.Conv2d(5, 12, 3)
    weight = net.layer.weight.detach().clone()
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["layer"], use_dora=use_dora, init_lora_weights=False)
    model: Any = get_peft_model(net, config)
    its = model.base_model.model.layer
    if use_dora:
        its.lora_magnitude_vector["default"].weight.data.mul_(1.1)
    a, b = (its.lora_A["default"].weight.detach().clone(), its.lora_B["default"].weight.detach().clone())
    norms = its.lora_magnitude_vector["default"].weight.detach().reshape(-1).clone() if use_dora else None
    kernel = tuple(weight.shape[2:])
    pair = Pair(a.flatten(1), b.flatten(1), 0.5, kernel, None if norms is None else Magnitude(norms, "out", "PEFT"))
    its.set_scale("default", strength)
    its.merge()
    torch.testing.assert_close(
        fuse_into(weight, [(pair, strength)]), its.get_base_layer().weight.detach(), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(("axis", "made_by"), [("out", "PEFT"), ("out", "LyCORIS"), ("in", "LyCORIS")])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_dora_beside_other_adapters_adds_its_change_of_the_pristine_weight(axis, made_by, strength):
    weight = weight_of()
    uses = [(with_norms(random_pair(1), axis, made_by), strength), (random_pair(2), -0.6)]
    for order in itertools.permutations(uses):
        torch.testing.assert_close(fuse_into(weight, order).double(), exact(weight, uses), rtol=1e-5, atol=1e-5)


def test_a_dora_of_a_row_of_zeros_stays_finite():
    weight, pair = weight_of(), random_pair(1)
    weight[3], pair.b[3] = 0, 0
    fused = fuse_into(weight, [(with_norms(pair, "out", "PEFT"), 1.0)])
    assert torch.isfinite(fused).all()
    assert not fused[3].any()


def test_the_weight_of_a_convolution_is_a_matrix_to_a_pair():
    weight = weight_of(12, 18).view(12, 2, 3, 3).contiguous()
    pair = random_pair(0, inp=18)
    torch.testing.assert_close(fuse_into(weight, [(pair, 1.0)]).flatten(1), fuse_into(weight.flatten(1), [(pair, 1.0)]))


@pytest.mark.parametrize("made_by", ["", "PEFT", "LyCORIS"])
def test_strength_zero_adds_nothing_to_any_bit(made_by):
    weight = weight_of(dtype=torch.bfloat16)
    pair = with_norms(random_pair(0), "out", made_by) if made_by else random_pair(0)
    assert torch.equal(fuse_into(weight, [(pair, 0.0)]), weight)
    beside = random_pair(1)
    assert torch.equal(fuse_into(weight, [(pair, 0.0), (beside, 1.0)]), fuse_into(weight, [(beside, 1.0)]))


@pytest.mark.parametrize("adapter_dtype", [torch.bfloat16, torch.float32])
def test_the_result_is_written_where_it_shall_lie_also_over_the_weight_itself(adapter_dtype):
    weight = weight_of(600, 500, dtype=torch.bfloat16)
    uses = [(random_pair(0, out=600, inp=500, dtype=adapter_dtype), 0.7)]
    expected, out = fuse_into(weight, uses), torch.empty_like(weight)
    place = out.data_ptr()
    assert fuse_into(weight, uses, out) is out
    assert (out.data_ptr(), torch.equal(out, expected)) == (place, True)
    assert torch.equal(fuse_into(weight, uses, weight), expected)


def test_a_parameter_that_is_trained_can_be_fused_without_a_graph():
    weight = nn.Parameter(weight_of(dtype=torch.bfloat16))
    assert not fuse_into(weight, [(random_pair(0, dtype=torch.bfloat16), 1.0)]).requires_grad


def test_processes_that_multiply_float32_as_bfloat16_still_fuse_in_full():
    weight, uses = weight_of(64, 64), [(random_pair(0, out=64, inp=64), 1.0)]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        fused = fuse_into(weight, uses)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(fused.double(), exact(weight, uses), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_keeps_the_mean_and_takes_only_neighbours(dtype):
    weight, pair = weight_of(8, 8, dtype=dtype), random_pair(0, out=8, inp=8)
    true = exact(weight, [(pair, 1e-4)])
    draws = [fuse_into(weight, [(pair, 1e-4)], noise=torch.Generator().manual_seed(seed)) for seed in range(2000)]
    values = torch.stack(draws).double()
    step = torch.finfo(dtype).eps * true.abs()
    assert ((values - true).abs() <= step).all()
    # The mean of 2000 draws of a step's width lies within 5 of its standard deviations, half a step / sqrt(2000).
    assert ((values.mean(0) - true).abs() <= 5 * step / 2 / 2000**0.5).all()
    nearest = fuse_into(weight, [(pair, 1e-4)]).double()
    assert (nearest - true).norm() > 10 * (values.mean(0) - true).norm()


def test_stochastic_rounding_is_a_function_of_its_seed_and_leaves_what_needs_no_rounding():
    weight = weight_of(300, 300, dtype=torch.bfloat16)
    nothing = Pair(torch.zeros(2, 300), torch.zeros(300, 2), 1.0)
    assert torch.equal(fuse_into(weight, [(nothing, 1.0)], noise=torch.Generator().manual_seed(0)), weight)
    uses = [(random_pair(0, out=300, inp=300), 0.01)]
    one, other, third = (fuse_into(weight, uses, noise=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


@pytest.mark.parametrize("made_by", ["", "PEFT"])
def test_the_dense_update_is_what_fusing_adds(made_by):
    weight, pair = weight_of(), random_pair(0)
    pair = with_norms(pair, "out", made_by) if made_by else pair
    expected = exact(weight, [(pair, 0.7)]) - weight.double()
    torch.testing.assert_close(dense_update(weight, pair, 0.7).double(), expected, rtol=1e-5, atol=1e-6)


def test_rows_in_float64_are_those_of_the_sum():
    weight, uses = weight_of(), [(random_pair(0), 0.7), (with_norms(random_pair(1), "in", "LyCORIS"), 0.5)]
    rows = torch.tensor([0, 5, 11])
    torch.testing.assert_close(fused_rows(weight, uses, rows), exact(weight, uses)[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strength", [1.0, 0.01, 1e-4])
def test_the_lost_share_of_sampled_rows_is_that_of_the_whole(strength):
    weight, pair = real_size(torch.float32, size=512)
    fused = fuse_into(weight, [(pair, strength)])
    update = exact(weight, [(pair, strength)]) - weight.double()
    expected = (fused.double() - weight.double() - update).norm() / update.norm()
    assert lost_share(weight, fused, [(pair, strength)]) == pytest.approx(float(expected), rel=0.03)  # 64 of 512 rows
    assert lost_share(weight, weight, [(pair, 0.0)]) == 0.0
