"""Branches learn: dtypes, gradient checkpointing, dropout."""

import pytest
import torch
from torch import nn

from reelora.adapters import LoraSpec
from reelora.lora import TrainableLinear, attach

SPEC = LoraSpec(rank=4, alpha=4)


def branches(model):
    return [module for module in model.modules() if isinstance(module, TrainableLinear)]


def backward(model, forward, **how):
    model.zero_grad()
    for branch in branches(model):
        nn.init.normal_(branch.lora_b, std=0.1, generator=torch.Generator().manual_seed(3))
    forward(model, **how).float().square().mean().backward()
    grads = [p.grad for branch in branches(model) for p in (branch.lora_a, branch.lora_b)]
    return [grad for grad in grads if grad is not None]


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_float32_and_near_those_of_a_float32_model(transformer, forward, base, autocast):
    attach(transformer, SPEC)
    expected = backward(transformer, forward)
    masters = [(branch, branch.lora_a, branch.lora_b) for branch in branches(transformer)]
    transformer.to(base)
    for branch, a, b in masters:
        branch.lora_a, branch.lora_b = nn.Parameter(a.data.float()), nn.Parameter(b.data.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = backward(transformer, forward, dtype=base)
    assert len(actual) == 16
    assert all(grad.dtype == torch.float32 for grad in actual)
    error = torch.cat([(a - e).flatten() for a, e in zip(actual, expected, strict=True)]).norm()
    # bfloat16 has 8 bits: 2^-8 per rounding; a few dozen of them stand between the input and these gradients.
    assert error < 0.05 * torch.cat([e.flatten() for e in expected]).norm()


def test_the_branch_computes_in_the_bases_dtype_and_keeps_no_copy_of_its_input(forward):
    branch = TrainableLinear(nn.Linear(16, 8).bfloat16().requires_grad_(False), torch.randn(4, 16), scale=0.5)
    x = torch.randn(100, 16, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = branch(x)
    assert y.dtype == torch.bfloat16
    tall = {t.data_ptr(): t for t in kept if t.shape[:1] == (100,)}
    assert set(tall) == {x.data_ptr()}  # x itself, and not the rank-wide intermediate


def test_gradient_checkpointing_changes_no_gradient(model, forward):
    attach(model.train(), SPEC)
    expected = backward(model, forward)
    model.enable_gradient_checkpointing()
    actual = backward(model, forward)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_dropout_acts_in_training_only(transformer, forward):
    attach(transformer, LoraSpec(rank=4, alpha=4, dropout=0.5))
    backward(transformer, forward)
    assert torch.equal(forward(transformer.eval()), forward(transformer))
    assert not torch.equal(forward(transformer.train()), forward(transformer))


def test_a_few_steps_lower_the_loss_and_never_touch_the_base(transformer, forward):
    attach(transformer, SPEC)
    base = {name: p.clone() for name, p in transformer.named_parameters() if not p.requires_grad}
    goal = torch.zeros_like(forward(transformer))
    optimizer = torch.optim.AdamW([p for p in transformer.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(forward(transformer), goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(p, base[name]) for name, p in transformer.named_parameters() if not p.requires_grad)
