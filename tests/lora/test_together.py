"""Projections of one input run as one node, and nobody can tell but by memory and time."""

import copy

import pytest
import torch
from tiny import run, tiny_transformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from reelora.adapters import LoraSpec
from reelora.errors import MismatchError
from reelora.lora import Shadows, TrainableLinear, attach, detach, roads
from reelora.lora.projections import Frozen, Low, project
from reelora.lora.together import ALONE, TOGETHER

SPEC = LoraSpec(rank=4, alpha=2)
FIRST = "transformer_blocks.0.attn1"


def branches(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, TrainableLinear)}


def with_effect(model, spec=SPEC):
    """Branches whose B is not zero."""
    attach(model, spec)
    draw = torch.Generator().manual_seed(3)
    for branch in branches(model).values():
        nn.init.normal_(branch.lora_b, std=0.1, generator=draw)
    return model


def gradients(model, **how):
    model.zero_grad()
    run(model, **how).float().square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def relative(actual, expected):
    pairs = [(actual[name] - grad, grad) for name, grad in expected.items()]
    return torch.cat([d.flatten() for d, _ in pairs]).norm() / torch.cat([g.flatten() for _, g in pairs]).norm()


def one_by_one(model):
    """The same with the stock processor, so that query, key and value are three nodes."""
    twin = copy.deepcopy(model)
    from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

    twin.set_attn_processor(CogVideoXAttnProcessor2_0())
    return twin


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        LoraSpec(rank=4, alpha=2, rslora=True),
        LoraSpec(rank=4, alpha=2, rank_pattern={"to_k": 2, "to_v": 6}, alpha_pattern={"to_v": 5}),
    ],
    ids=["one rank", "rslora", "patterns"],
)
def test_together_is_what_they_are_one_by_one(spec):
    model = with_effect(tiny_transformer(), spec)
    alone = one_by_one(model)
    assert {TOGETHER, ALONE} == set(roads(model).values())
    assert {ALONE} == set(roads(alone).values())
    assert torch.equal(run(model), run(alone))
    assert relative(gradients(model), gradients(alone)) < 1e-6  # float32, summed in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_that_of_autograd(dtype):
    draw = torch.Generator().manual_seed(0)
    ranks, scales = (3, 5), (0.5, 2.0)

    def random(*shape):
        return torch.randn(shape, generator=draw).to(dtype)

    x = random(2, 7, 16).requires_grad_()
    weights, biases = [random(12, 16) for _ in ranks], [random(12), None]
    masters = [(nn.Parameter(random(r, 16).float()), nn.Parameter(random(12, r).float())) for r in ranks]
    frozen = [Frozen(weight=w, bias=b, scale=s) for w, b, s in zip(weights, biases, scales, strict=True)]
    low = Low(a=torch.cat([a for a, _ in masters]).detach().to(dtype), bs=[b.detach().to(dtype) for _, b in masters])
    outs = [random(2, 7, 12) for _ in ranks]
    sources = [x, *[factor for pair in masters for factor in pair]]

    actual = torch.autograd.grad(project(x, frozen, low, masters), sources, outs)
    exact = [
        x.double() @ w.double().T + (0 if b is None else b.double()) + s * (x.double() @ pa.double().T) @ pb.double().T
        for w, b, s, (pa, pb) in zip(weights, biases, scales, masters, strict=True)
    ]
    expected = torch.autograd.grad(exact, sources, [out.double() for out in outs])
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-6}[dtype]  # a few roundings of 2^-8
    for ours, true in zip(actual, expected, strict=True):
        assert (ours - true).norm() < tolerance * true.norm()
    assert [grad.dtype for grad in actual] == [dtype, *[torch.float32] * 4]


class Products(TorchDispatchMode):
    """Counts matrix products by the number of rows of their result."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
            self.rows.append(len(out))
        return out


@pytest.mark.parametrize(("is_asked", "expected"), [(False, 2), (True, 4)])
def test_the_first_block_computes_no_gradient_of_its_input(is_asked, expected):
    """With N rows: A x and dy B; where it is asked for, the input's gradient through A and through W."""
    x, a, b = torch.randn(5, 8, requires_grad=is_asked), nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(6, 2))
    low = Low(a=a.detach(), bs=[b.detach()])
    (y,) = project(x, [Frozen(weight=torch.randn(6, 8), bias=None, scale=1.0)], low, [(a, b)])
    with Products() as products:
        y.sum().backward()
    assert products.rows.count(5) == expected
    assert (x.grad is not None) is is_asked


def test_query_key_and_value_keep_their_input_once():
    model = with_effect(tiny_transformer())
    kept, seen = [], []
    attention = model.get_submodule(FIRST)
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].shape[1] + kwargs["encoder_hidden_states"].shape[1]),
        with_kwargs=True,
    )
    norms = (attention.norm_q, attention.norm_k)
    attention.norm_q = attention.norm_k = None  # these keep what they are given too
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(model)
    handle.remove()
    attention.norm_q, attention.norm_k = norms
    assert seen == [3 * 16 + 8]
    rank_wide = [t for t in kept if t.dim() > 1 and t.shape[-1] in (4, 12) and t.shape[:-1].numel() >= 2 * seen[0]]
    assert not rank_wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_for_a_step_change_no_bit(dtype):
    model = with_effect(tiny_transformer().to(dtype))
    plain = gradients(model, dtype=dtype)
    with Shadows(model).cast():
        cast = gradients(model, dtype=dtype)
    assert plain.keys() == cast.keys()
    assert all(torch.equal(cast[name], grad) for name, grad in plain.items())


def test_copies_are_those_of_the_weights_at_the_start_of_every_step():
    model = with_effect(tiny_transformer().bfloat16())
    shadows = Shadows(model)
    with shadows.cast():
        before = run(model, dtype=torch.bfloat16)
    for branch in branches(model).values():
        branch.lora_b.data.mul_(3)  # behind autograd's back, as optimizers of other packages do it
    changed = run(model, dtype=torch.bfloat16)
    with shadows.cast():
        after = run(model, dtype=torch.bfloat16)
    assert torch.equal(after, changed)
    assert not torch.equal(after, before)
    assert all(branch.shadow is None and branch.shared_shadow is None for branch in branches(model).values())


def test_a_base_with_a_hook_or_of_another_class_is_called():
    class Odd(nn.Linear):
        def forward(self, input):  # noqa: A002
            return 2 * super().forward(input)

    model = with_effect(tiny_transformer())
    calls = []
    hooked = branches(model)[f"{FIRST}.to_k"]
    hooked.base.register_forward_hook(lambda *_: calls.append(1))
    assert "a hook" in roads(model)[f"{FIRST}.to_k"]
    assert roads(model)[f"{FIRST}.to_q"] == ALONE
    alone = one_by_one(model)
    assert torch.equal(run(model), run(alone))
    assert len(calls) == 2

    odd = TrainableLinear(Odd(8, 8).requires_grad_(False), torch.randn(2, 8), scale=1.0)
    x = torch.randn(3, 8)
    assert torch.equal(odd(x), odd.base(x))
    assert "a way of its own" in odd.why_apart


def test_dropout_runs_the_branch_after_its_base_in_training_only():
    model = with_effect(tiny_transformer(), LoraSpec(rank=4, alpha=2, dropout=0.5))
    model.train()
    assert all("dropped" in road for road in roads(model).values())
    model.eval()
    assert TOGETHER in roads(model).values()


def test_weights_that_are_trained_too_get_their_gradients():
    model = with_effect(tiny_transformer())
    base = branches(model)[f"{FIRST}.to_v"]
    base.weight.requires_grad_()
    grads = gradients(model)
    assert grads[f"{FIRST}.to_v.weight"].norm() > 0
    assert "trained" in base.why_apart


def test_attaching_gives_the_attention_a_processor_and_detaching_takes_it():
    model = tiny_transformer()
    before = model.attn_processors
    attach(model, SPEC)
    assert {type(processor).__name__ for processor in model.attn_processors.values()} == {"StackedAttention"}
    detach(model)
    assert model.attn_processors == before
    assert not model._forward_pre_hooks


def test_a_fused_copy_of_the_projections_would_leave_the_branches_out_and_is_refused():
    model = with_effect(tiny_transformer())
    model.fuse_qkv_projections()
    with pytest.raises(MismatchError, match="unfuse_qkv_projections"):
        run(model)


def test_only_some_of_query_key_and_value_run_alone():
    model = with_effect(tiny_transformer(), LoraSpec(rank=4, alpha=2, target_modules=("to_q", "to_out.0")))
    assert set(roads(model).values()) == {ALONE}
    assert len(gradients(model)) == 8


def test_the_summary_says_how_they_run(unet):
    assert ("branches", f"6 {TOGETHER}") in attach(tiny_transformer(), SPEC).rows()
    assert set(attach(unet, SPEC).roads.values()) == {ALONE}
