"""What blocks keep changes memory and work, and not one bit of any number."""

from dataclasses import replace

import pytest
import torch
from branched import branched, forward
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from reelora.errors import ConfigError
from reelora.lora import Shadows
from reelora.plan import BlockCost, Rehearsal, choose, peak_bytes, uniform
from reelora.plan import rehearse as rehearse_ways
from reelora.train import LoopConfig
from reelora.train.budget import plan_memory
from reelora.train.optimizers import make_optimizer
from reelora.train.recompute import Kept, Recomputing, ways_of
from reelora.train.shown import RunningMean

WAYS: list[Kept] = ["everything", "products", "attention", "inputs"]
CPU = torch.device("cpu")


def rehearse(model, run, ways=None):
    return rehearse_ways(model, run, ways_of, wanted=ways)


def blocks_of(model):
    return list(rehearse(model, forward(model), ways=()).blocks)


def step(model, chosen=None, counter=None):
    """What the model says and the gradients of all branches, with the blocks kept as chosen."""
    if chosen is not None:
        model.enable_gradient_checkpointing(Recomputing(chosen))
    model.zero_grad()
    with counter or Counter():
        torch.manual_seed(7)  # dropout
        result = forward(model)()
        result.square().mean().backward()
    model.disable_gradient_checkpointing()
    return {"result": result.detach()} | {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


class Counter(TorchDispatchMode):
    """How often the attention runs forwards, and the second product of feed-forward layers (of inputs of width 128)."""

    def __init__(self):
        super().__init__()
        self.attentions = self.second_products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.attentions += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        self.second_products += func is torch.ops.aten.addmm.default and args[1].shape[-1] == 128
        return func(*args, **(kwargs or {}))


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kept", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["2B", "5B", "1.5"])
def test_whatever_blocks_keep_the_bits_are_those_of_the_stock_block(kind, dtype, kept):
    model = branched(kind, dtype)
    assert_same(step(model, dict.fromkeys(blocks_of(model), kept)), step(model))


@pytest.mark.parametrize("spec", [{"dropout": 0.5}, {"target_modules": ("to_out.0", "ff.net.2")}], ids=["dropout", "others"])
def test_so_they_are_with_dropout_and_with_branches_elsewhere(spec):
    model = branched("5B", **spec)
    expected = step(model)
    for kept in ways_of(model.transformer_blocks[0]):
        assert_same(step(model, dict.fromkeys(blocks_of(model), kept)), expected)


def test_blocks_of_a_unet_keep_everything_or_their_inputs():
    model = branched("unet")
    blocks = blocks_of(model)
    assert len(blocks) > 4
    assert all(list(ways_of(block)) == ["everything", "inputs"] for block in blocks)
    assert_same(step(model, dict.fromkeys(blocks, "inputs")), step(model))


def test_blocks_may_keep_different_things():
    model = branched()
    assert_same(step(model, dict(zip(blocks_of(model), WAYS[1:], strict=True))), step(model))


@pytest.mark.parametrize(("kept", "attentions"), [("everything", 3), ("products", 3), ("attention", 3), ("inputs", 6)])
def test_what_is_computed_again(kept, attentions):
    """Attention where only inputs are kept; the second product of the feed-forward layers never."""
    model, counter = branched(), Counter()
    step(model, dict.fromkeys(blocks_of(model), kept), counter)
    assert (counter.attentions, counter.second_products) == (attentions, 3)


def test_the_stock_way_computes_the_second_product_again():
    """The reason for leaving the last sum outside."""
    model = branched()
    model.enable_gradient_checkpointing()
    with Counter() as counter:
        forward(model)().sum().backward()
    assert (counter.attentions, counter.second_products) == (6, 6)


def test_a_block_with_a_hook_is_called_as_the_module_that_it_is():
    model, calls = branched(), []
    blocks = blocks_of(model)
    blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    assert list(ways_of(blocks[1])) == ["everything", "inputs"]
    step(model, dict.fromkeys(blocks, "inputs"))
    assert len(calls) == 2  # forward, and again in the backward pass


def saved_bytes(model, chosen):
    """What autograd keeps of a forward pass with these choices, and what it is told to keep by name of the block's way."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            held[storage._cdata] = storage
        return tensor

    model.enable_gradient_checkpointing(Recomputing(chosen))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward(model)()
    model.disable_gradient_checkpointing()
    assert result.grad_fn is not None
    return sum(storage.nbytes() for storage in held.values())


def test_the_rehearsal_says_what_autograd_keeps():
    model = branched("2B", torch.bfloat16)
    rehearsal = rehearse(model, forward(model))
    chosen: dict[nn.Module, Kept] = dict.fromkeys(rehearsal.blocks, "everything")
    measured = saved_bytes(model, chosen) / len(chosen)
    predicted = sum(costs["everything"].kept_bytes for costs in rehearsal.blocks.values()) / len(chosen)
    # The hooks of this measurement see neither the model's result nor, of what is remade, that it is not kept.
    assert predicted == pytest.approx(measured, rel=0.1)


class LiveBytes(TorchDispatchMode):
    """The most memory that tensors made inside took at once."""

    def __init__(self):
        super().__init__()
        self.peak, self.alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        from torch.multiprocessing.reductions import StorageWeakRef

        for tensor in [result] if isinstance(result, torch.Tensor) else result if isinstance(result, tuple | list) else []:
            if isinstance(tensor, torch.Tensor) and not func.is_view and all(tensor is not given for given in args):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.alive = {held: size for held, size in self.alive.items() if not held.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def measured_peak(model, chosen, *, passes=1):
    """Of all tensors that are made in a step, gradients of weights included."""
    model.enable_gradient_checkpointing(Recomputing(chosen))
    model.zero_grad()
    with LiveBytes() as live:
        for _ in range(passes):
            forward(model)().square().mean().backward()
    model.disable_gradient_checkpointing()
    return live.peak


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("kind", ["2B", "5B", "unet"])
@pytest.mark.parametrize("kept", WAYS)
def test_the_predicted_peak_is_that_of_a_real_step(kind, kept, passes):
    """Never less; more by what tiny models have at the ends of a block, which is a hundredth of a real one."""
    model = branched(kind)
    rehearsal = rehearse(model, forward(model))
    chosen = uniform(rehearsal, WAYS.index(kept))
    predicted = peak_bytes(rehearsal, chosen, is_accumulating=passes > 1)
    assert 1 <= predicted / measured_peak(model, chosen, passes=passes) <= 1.06


@pytest.mark.parametrize("kept", WAYS)
def test_gradients_come_block_by_block(kept):
    """With branches as large as their base: where activations are at their most, at the last block, none of the others has a
    gradient; where passes are added up, all have one."""
    model = branched("2B", rank=256)
    rehearsal = rehearse(model, forward(model))
    chosen = uniform(rehearsal, WAYS.index(kept))
    once, again = (peak_bytes(rehearsal, chosen, is_accumulating=is_accumulating) for is_accumulating in (False, True))
    assert rehearsal.gradient_bytes == sum(p.nbytes for p in model.parameters() if p.requires_grad) > 0.2 * once
    assert 1 <= once / measured_peak(model, chosen) <= 1.06
    assert 1 <= again / measured_peak(model, chosen, passes=2) <= 1.06
    assert again > 1.1 * once


def test_what_several_blocks_are_told_counts_once():
    """Rotary positions are one tensor for all blocks."""
    positions = 2 * (4 * 4 * 4) * 16 * 4  # cosines and sines of 4 x 4 x 4 tokens of 16 numbers
    models = [branched(kind) for kind in ("2B", "5B")]
    without, having = (rehearse(model, forward(model)) for model in models)
    kept = [[costs["inputs"].kept_bytes for costs in found.blocks.values()] for found in (without, having)]
    assert kept[0] == kept[1]
    assert having.rest_bytes == without.rest_bytes + positions


def test_the_rehearsal_takes_the_road_of_a_real_step():
    """On tensors without memory a branch is one node with its base too: it keeps nothing that is as wide as its rank."""
    narrow, broad = (branched("2B", rank=rank) for rank in (4, 8))
    costs = [list(rehearse(model, forward(model)).blocks.values())[-1]["everything"] for model in (narrow, broad)]
    copies = 3 * 4 * 32 * 4  # four more rows of A of query, key and value, put below each other
    assert costs[1].kept_bytes - costs[0].kept_bytes == copies


def test_rehearsing_computes_nothing_and_leaves_no_trace():
    model = branched()
    before, state = step(model), torch.random.get_rng_state()
    grads = {name: p.grad for name, p in model.named_parameters()}
    rehearse(model, forward(model))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(grads[name] is p.grad for name, p in model.named_parameters())
    assert_same(step(model), before)


def cost(kept, work):
    return BlockCost(kept_bytes=kept, forward_bytes=5, backward_bytes=10, flops={"product": work})


COSTS: dict[Kept, BlockCost] = {
    "everything": cost(100, 1000),
    "products": cost(80, 1000),
    "attention": cost(20, 1300),
    "inputs": cost(10, 1400),
}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (413, ["everything"] * 4),
        (412, ["products", *["everything"] * 3]),
        (333, ["products"] * 4),
        (332, ["attention", *["products"] * 3]),
        (93, ["attention"] * 4),
        (92, ["inputs", *["attention"] * 3]),
        (53, ["inputs"] * 4),
        (1, ["inputs"] * 4),
    ],
)
def test_as_little_as_possible_is_computed_again(budget, expected):
    rehearsal = Rehearsal(blocks={nn.Identity(): COSTS for _ in range(4)}, rest_bytes=3)
    chosen = choose(rehearsal, budget)
    assert list(chosen.values()) == expected
    assert peak_bytes(rehearsal, chosen) <= budget or set(expected) == {"inputs"}


def test_gradients_that_wait_for_the_next_pass_leave_less_room():
    block: dict[Kept, BlockCost] = {name: replace(cost, gradient_bytes=7) for name, cost in COSTS.items()}
    rehearsal = Rehearsal(blocks={nn.Identity(): block for _ in range(4)}, rest_bytes=3)
    assert rehearsal.gradient_bytes == 28
    assert peak_bytes(rehearsal, uniform(rehearsal, 0)) == 3 + 400 + 10
    assert peak_bytes(rehearsal, uniform(rehearsal, 0), is_accumulating=True) == 3 + 400 + 10 + 28
    assert set(choose(rehearsal, 413).values()) == {"everything"}
    assert set(choose(rehearsal, 413, is_accumulating=True).values()) != {"everything"}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("kind", ["adamw", "prodigy"])
@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_the_whole_step_takes_what_is_said_beforehand(kind, passes, ema_decay):
    """Copies of A and B, gradients, the optimizer's state and what it makes on its way, the running mean; once with few
    activations beside large branches, so that the optimizer's own step is the peak or near it."""
    model = branched("2B", rank=512)
    config = settings(
        optimizer={"kind": kind, "learning_rate": 1.0 if kind == "prodigy" else 1e-4},
        gradient_accumulation=passes,
        ema_decay=ema_decay,
        memory=1.0,
    )
    shadows = Shadows(model)
    with shadows.cast():
        plan = plan_memory(model, forward(model), config, device=CPU)
    shadows, trained = Shadows(model), [p for p in model.parameters() if p.requires_grad]
    model.enable_gradient_checkpointing(Recomputing(plan.chosen))
    with LiveBytes() as live:
        optimizer, mean = make_optimizer(config.optimizer, trained), RunningMean(trained, ema_decay)
        for step in range(3):
            with shadows.cast():
                for _ in range(passes):
                    forward(model)().square().mean().backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            mean.update(step + 1)
    weights = sum(p.nbytes for p in trained)
    assert plan.total_bytes is not None
    assert 1 <= (plan.total_bytes - plan.base_bytes - weights) / live.peak <= 1.05


def settings(**loop):
    return LoopConfig.of(loop)


def planned(model, **loop):
    return plan_memory(model, forward(model), settings(**loop), device=CPU)


def test_a_smaller_budget_keeps_less_and_stays_within_it():
    model = branched()
    roomy = planned(model)
    assert set(roomy.chosen.values()) == {"everything"}
    assert roomy.extra_work == 0
    assert roomy.total_bytes is not None
    tight = planned(model, memory=0.95 * roomy.total_bytes / 2**30)
    assert tight.total_bytes is not None
    assert tight.total_bytes <= 0.95 * roomy.total_bytes
    assert set(tight.chosen.values()) != {"everything"}
    assert "loop.memory" in str(tight)
    assert "keep their" in str(tight)


def test_a_budget_that_nothing_fits_into_is_refused_with_what_it_takes():
    with pytest.raises(ConfigError, match="at the least"):
        planned(branched(), memory=1e-4)


def test_settings_that_choose_for_every_block_are_obeyed():
    model = branched("unet")
    for asked, kept in ((True, "inputs"), (False, "everything")):
        plan = planned(model, gradient_checkpointing=asked, memory=1e-4)
        assert (plan.otherwise, plan.chosen) == (kept, {})
        assert f"all keep {'their inputs' if asked else 'everything'}" in str(plan)
        assert f"gradient_checkpointing = {str(asked).lower()}" in plan.why


def test_auto_shares_the_hosts_memory_between_processes(monkeypatch):
    model = branched()
    needed = planned(model).total_bytes
    assert needed is not None
    monkeypatch.setattr("reelora.train.budget.free_bytes", lambda device: int(1.3 * needed))
    assert set(planned(model).chosen.values()) == {"everything"}
    shared = plan_memory(model, forward(model), settings(), device=CPU, processes=2)
    assert set(shared.chosen.values()) != {"everything"}


def test_a_model_that_looks_at_values_is_refused_with_what_to_write_instead():
    model = branched()
    norm = model.transformer_blocks[0].norm1
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[0].sum())))
    with pytest.raises(ConfigError, match=r"loop\.gradient_checkpointing = true"):
        planned(model)
    assert not model.is_gradient_checkpointing
    assert planned(model, gradient_checkpointing=False).otherwise == "everything"
