"""Training beside a base in less memory: the same run where nothing is rounded, and figures that are right where memory is."""

import pytest
import torch
from late_copies import LateCopies
from small_run import make_transformer
from test_recompute import WAYS, blocks_of, forward, measured_peak, rehearse, step
from test_recompute import branched as plainly
from tiny_models import build_transformer
from torch import nn

from reelora.adapters import LoraSpec
from reelora.lora import attach, store_base
from reelora.plan import peak_bytes, uniform

CPU = torch.device("cpu")
STORED = [("precision", True), ("fp8", False), ("fp8", True), ("int8", True)]
DEPTH = 4
"""Blocks of the runs: more than there is room for."""
IDS = ["streamed", "fp8", "fp8 streamed", "int8 streamed"]


def with_branches(storage, *, stream, kind="5B", dtype=torch.float32):
    """A model like that of `test_recompute`, over a stored base, and what is told of that."""
    torch.manual_seed(0)
    model = build_transformer(kind, sample_width=8, sample_height=8, num_layers=3)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    told = store_base(model, storage, stream=stream, device=CPU, copier=LateCopies())
    attach(model, LoraSpec(rank=4, alpha=2))
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1, generator=draw)
    return model.train(), told


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kept", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streaming_changes_no_bit_whatever_blocks_keep(dtype, kept):
    """Copies come at the last moment, and until then the buffer holds NaN."""
    plain = plainly("5B", dtype)
    expected = step(plain, dict.fromkeys(blocks_of(plain), kept))
    model, _ = with_branches("precision", stream=True, dtype=dtype)
    for _ in range(3):  # the order is learned in the first
        assert_same(step(model, dict.fromkeys(blocks_of(model), kept)), expected)


@pytest.mark.parametrize("storage", ["fp8", "int8"])
@pytest.mark.parametrize("stream", [False, True])
def test_packed_weights_give_the_same_bits_whatever_blocks_keep(storage, stream):
    model, _ = with_branches(storage, stream=stream)
    expected = step(model)
    for kept in WAYS:
        assert_same(step(model, dict.fromkeys(blocks_of(model), kept)), expected)


@pytest.mark.parametrize("kept", WAYS)
def test_a_step_copies_each_block_once_in_each_direction_whatever_blocks_keep(kept):
    model, told = with_branches("precision", stream=True)
    assert told.ring is not None
    chosen = dict.fromkeys(blocks_of(model), kept)
    step(model, chosen)
    before = told.ring.num_copies
    step(model, chosen)
    assert told.ring.num_copies - before == 2  # of three blocks two are there at either turn


@pytest.mark.parametrize("kept", WAYS)
@pytest.mark.parametrize(("storage", "stream"), STORED, ids=IDS)
def test_the_predicted_peak_is_that_of_a_real_step(storage, stream, kept):
    """Never less. Weights that are made for a use are counted; the ring, which is there all the time, is the base's."""
    model, _ = with_branches(storage, stream=stream)
    rehearsal = rehearse(model, forward(model))
    chosen = uniform(rehearsal, WAYS.index(kept))
    assert 1 <= peak_bytes(rehearsal, chosen) / measured_peak(model, chosen) <= 1.06


@pytest.mark.parametrize(("storage", "stream"), STORED, ids=IDS)
def test_blocks_keep_what_they_keep_of_any_base(storage, stream):
    """No weight waits for the backward pass, whatever it was made of."""
    plain, (model, _) = plainly("5B"), with_branches(storage, stream=stream)
    kept = [
        [{way: cost.kept_bytes for way, cost in costs.items()} for costs in rehearse(one, forward(one)).blocks.values()]
        for one in (plain, model)
    ]
    assert kept[0] == kept[1]


def test_rehearsing_a_streamed_base_copies_nothing():
    model, told = with_branches("precision", stream=True)
    rehearse(model, forward(model))
    assert told.ring is not None
    assert told.ring.num_copies == 0


# ---- whole runs


@pytest.fixture
def over():
    """A new transformer with the branches of ``branched`` over a stored base."""

    def make(storage, *, stream):
        transformer = make_transformer(num_layers=DEPTH)
        told = store_base(transformer, storage, stream=stream, device=CPU, copier=LateCopies())
        attach(transformer, LoraSpec(rank=4, alpha=4), seed=3)
        return transformer, told

    return make


def trained(model):
    return [p.detach() for p in model.parameters() if p.requires_grad]


def stop_after(step):
    stopped = []
    return {"on_step": lambda report: stopped.append(report.step), "should_stop": lambda: stopped[-1:] == [step]}


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation": 3}, {"gradient_checkpointing": True}, {"ema_decay": 0.5}])
def test_a_run_over_a_streamed_base_is_the_run_that_it_would_be(run, over, branched, config, changes):
    settings = config.model_copy(update=changes)
    _, plain, losses = run("plain", settings, model=branched(num_layers=DEPTH))
    model, told = over("precision", stream=True)
    _, _, streamed = run("streamed", settings, model=model)
    assert streamed == losses
    assert all(torch.equal(one, other) for one, other in zip(trained(model), trained(plain), strict=True))
    assert told.ring.num_copies > 0


def test_nothing_is_ever_copied_back(run, over):
    model, told = over("precision", stream=True)
    before = [block.clone() for block in told.ring._blocks]
    run(model=model)
    assert all(torch.equal(block, then) for block, then in zip(told.ring._blocks, before, strict=True))


def test_a_run_may_go_on_with_a_streamed_base_and_without(run, over, branched):
    _, whole, losses = run("whole", model=branched(num_layers=DEPTH))
    run("parts", model=over("precision", stream=True)[0], **stop_after(2))
    run("parts", model=branched(num_layers=DEPTH), **stop_after(4))
    result, model, resumed = run("parts", model=over("precision", stream=True)[0])
    assert (result.resumed_from, resumed) == (4, losses)
    assert all(torch.equal(one, other) for one, other in zip(trained(model), trained(whole), strict=True))


@pytest.mark.parametrize(("storage", "stream"), STORED, ids=IDS)
def test_a_run_over_a_stored_base_resumes_exactly(run, over, storage, stream):
    _, whole, losses = run("whole", model=over(storage, stream=stream)[0])
    run("parts", model=over(storage, stream=stream)[0], **stop_after(3))
    _, resumed, same = run("parts", model=over(storage, stream=stream)[0])
    assert same == losses
    assert all(torch.equal(one, other) for one, other in zip(trained(resumed), trained(whole), strict=True))


@pytest.mark.parametrize(("storage", "stream"), STORED, ids=IDS)
def test_the_plan_counts_the_base_as_it_lies_on_the_device(run, over, branched, storage, stream):
    plans = []
    run("plain", model=branched(num_layers=DEPTH), on_plan=plans.append)
    model, told = over(storage, stream=stream)
    run("stored", model=model, on_plan=plans.append)
    plain, stored = (plan.base_bytes for plan in plans)
    assert plain - stored == told.precision_bytes - told.device_bytes
