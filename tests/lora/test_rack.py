"""Laws of the rack: the state decides the result, and the base is never lost."""

import copy
import random

import pytest
import torch
from test_using import FIRST, adapter_for, broken, close, fused, remade
from tiny_models import build_unet

from reelora.adapters import LoraSpec, write_adapter
from reelora.errors import AdapterError, ConfigError, MismatchError, UnknownScaleError
from reelora.lora import Rack, attach, base_fingerprints

QK = "transformer.transformer_blocks.0.attn1.to_k"


@pytest.fixture
def rack(model):
    """A rack with three adapters of different ranks, modules and scales."""
    rack = Rack(model)
    for name, adapter in adapters_for(model).items():
        rack.load(name, adapter)
    return rack


def adapters_for(model):
    some = adapter_for(model, rank=2, alpha=3.0, seed=1)
    few = remade(some, dict(list(some.pairs.items())[:3]))
    return {"one": adapter_for(model), "two": few, "three": adapter_for(model, rank=8, alpha=4.0, seed=2)}


def bits(model):
    """Every weight's own object, bytes and place."""
    return {name: (id(p), p.data.clone()) for name, p in model.named_parameters()}


def same(model, before):
    now = bits(model)
    return now.keys() == before.keys() and all(
        now[name][0] == before[name][0] and torch.equal(now[name][1], before[name][1]) for name in now
    )


# ---- what acts


def test_loading_activates_nothing(rack, model, forward):
    modules, before = dict(model.named_modules()), forward(copy.deepcopy(model))
    assert torch.equal(forward(model), before)
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("is_fused", [False, True], ids=["branches", "fused"])
def test_adapters_act_as_their_dense_updates_do(rack, model, forward, is_fused):
    adapters, base = adapters_for(model), copy.deepcopy(model)
    if is_fused:
        rack.fuse()
    rack.activate({"one": 0.7, "two": -0.4, "three": 1.0})
    expected = fused(base, [(adapters["one"], 0.7), (adapters["two"], -0.4), (adapters["three"], 1.0)])
    assert close(forward(model), forward(expected))
    assert not close(forward(model), forward(base))


def test_fused_and_as_branches_give_the_same(rack, model, forward):
    rack.activate({"one": 0.7, "two": 2})
    branches = forward(model)
    rack.fuse()
    assert close(forward(model), branches)
    rack.restore()
    assert torch.equal(forward(model), branches)


def test_strength_zero_and_an_empty_set_are_the_base_itself(rack, model, forward):
    modules, before = dict(model.named_modules()), bits(model)
    rack.activate({"one": 1.0})
    for nothing in ({}, {"one": 0.0}, {"one": {"*": 0}}):
        rack.activate(nothing)
        assert dict(model.named_modules()) == modules
        rack.fuse()
        assert same(model, before)
        rack.restore()
        assert dict(model.named_modules()) == modules


def test_a_module_that_no_active_adapter_touches_is_the_original_object(rack, transformer):
    rack = Rack(transformer)
    adapter = adapter_for(transformer)
    rack.load("one", remade(adapter, {FIRST: adapter.pairs[FIRST]}))
    original = transformer.transformer_blocks[0].attn1.to_k
    rack.activate({"one": 1.0})
    assert transformer.transformer_blocks[0].attn1.to_k is original
    assert type(transformer.transformer_blocks[0].attn1.to_q).__name__ == "StackedLinear"


def test_strengths_by_module_are_taken_by_the_first_pattern_that_fits(model, forward):
    adapter, base = adapter_for(model), copy.deepcopy(model)
    rack = Rack(model)
    rack.load("style", adapter)
    rule = {FIRST.partition(".")[2]: -1.0, "*attn1.to_v": 0.5, "*": 0}
    if FIRST in adapter.pairs:
        rack.activate({"style": rule})
        chosen = {name: pair for name, pair in adapter.pairs.items() if name.endswith("attn1.to_v")}
        uses = [(remade(adapter, {FIRST: adapter.pairs[FIRST]}), -1.0), (remade(adapter, chosen), 0.5)]
        assert close(forward(model), forward(fused(base, uses)))


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (float("nan"), "finite"),
        ("strong", "finite"),
        (True, "finite"),
        ({"transformer_blocks.1.*": 1.0}, r'no strength is given for 4 of its 8.*add "\*"'),
        ({"transformer_blocks.1": 0, "*": 1.0}, "'transformer_blocks.1' fits none of its 8 modules"),
        ({"*": float("inf")}, "finite"),
    ],
)
def test_impossible_strengths_are_refused_and_change_nothing(transformer, forward, strength, message):
    rack = Rack(transformer)
    rack.load("one", adapter_for(transformer))
    rack.activate({"one": 0.5})
    before = forward(transformer)
    with pytest.raises(ConfigError, match=message):
        rack.activate({"one": strength})
    assert torch.equal(forward(transformer), before)


def test_using_acts_for_a_block_and_then_acts_what_acted_before(rack, model, forward):
    rack.activate({"one": 1.0})
    before = forward(model)
    with rack.using({"two": 0.5}):
        assert not torch.equal(forward(model), before)
    assert torch.equal(forward(model), before)
    with pytest.raises(KeyboardInterrupt), rack.using({"two": 0.5}):
        raise KeyboardInterrupt
    assert torch.equal(forward(model), before)


# ---- registering


def test_a_name_is_never_overwritten_silently(rack, model):
    with pytest.raises(ConfigError, match=r"'one' is registered already.*unload"):
        rack.load("one", adapter_for(model))
    rack.unload("one")
    rack.load("one", adapter_for(model, seed=5))


def test_settings_for_reading_are_refused_for_an_adapter_in_memory(rack, model):
    with pytest.raises(ConfigError, match="alpha and producer are for reading a file"):
        rack.load("four", adapter_for(model), alpha=8)


def test_a_base_is_recognised_by_its_pristine_weights_while_fused(transformer):
    adapter = adapter_for(transformer).with_provenance(**base_fingerprints(transformer))
    rack = Rack(transformer)
    rack.load("first", remade(adapter, adapter.pairs))
    rack.activate({"first": 1.0})
    rack.fuse()
    rack.load("knows its base", adapter, strict_base=True)


def test_unknown_names_are_refused_with_the_nearest(rack):
    with pytest.raises(ConfigError, match=r"'thre'.*three"):
        rack.activate({"thre": 1.0})
    with pytest.raises(ConfigError, match="'four'"):
        rack.unload("four")


@pytest.mark.parametrize("is_fused", [False, True], ids=["branches", "fused"])
def test_unloading_what_acts_deactivates_it_first(rack, model, forward, is_fused):
    if is_fused:
        rack.fuse()
    rack.activate({"one": 0.5, "two": 1.0})
    rack.unload("two")
    actual = forward(model)
    rack.activate({"one": 0.5})
    assert torch.equal(forward(model), actual)
    rack.unload("one")
    rack.unload("three")
    assert not any(type(module).__name__.startswith("Stacked") for module in model.modules())


def test_a_file_can_be_loaded_by_its_path(transformer, forward, tmp_path):
    adapter = adapter_for(transformer)
    write_adapter(adapter, tmp_path / "a.safetensors")
    rack = Rack(transformer)
    rack.load("file", tmp_path / "a.safetensors")
    rack.load("memory", adapter)
    rack.activate({"file": 0.3})
    actual = forward(transformer)
    rack.activate({"memory": 0.3})
    assert torch.equal(forward(transformer), actual)


def test_what_does_not_fit_is_refused_when_it_is_loaded(transformer):
    rack, good = Rack(transformer), adapter_for(transformer)
    modules = dict(transformer.named_modules())
    with pytest.raises(MismatchError, match=r"\(32, 16\), the model's is \(32, 32\)"):
        rack.load("wrong", broken(good, a=torch.ones(4, 16)))
    with pytest.raises(UnknownScaleError):
        rack.load("wrong", broken(good, scale=None))
    with pytest.raises(MismatchError, match="are for the unet, and this Rack holds transformer"):
        rack.load("wrong", adapter_for(build_unet()))
    assert not rack.state.adapters
    assert dict(transformer.named_modules()) == modules


def test_values_that_are_not_finite_are_found_before_anything_is_edited(transformer, forward):
    good = adapter_for(transformer)
    b = good.pairs[FIRST].b.clone()
    b[0, 0] = float("inf")
    rack = Rack(transformer)
    rack.load("good", good)
    rack.load("bad", broken(good, b=b))
    rack.activate({"good": 1.0})
    before = forward(transformer)
    for switch in (rack.restore, rack.fuse):
        switch()
        now = forward(transformer)
        with pytest.raises(AdapterError, match="NaN or infinite"):
            rack.activate({"good": 0.5, "bad": 1.0})
        assert torch.equal(forward(transformer), now)
    rack.restore()
    assert torch.equal(forward(transformer), before)


# ---- the state decides


@pytest.mark.parametrize("seed", range(3))
def test_any_road_to_a_state_gives_the_same_bits(model, forward, seed):
    draw, base = random.Random(seed), bits(model)
    rack, adapters = Rack(model, cache_bytes=2**18), adapters_for(model)
    loaded: set[str] = set()
    for _ in range(1000):
        name = draw.choice(list(adapters))
        chosen = [other for other in sorted(loaded) if draw.random() < 0.6]
        draw.shuffle(chosen)
        strengths = {other: draw.choice([-0.5, 0, 0.3, 1.0]) for other in chosen}
        match draw.randrange(8):
            case 0 if name not in loaded:
                rack.load(name, adapters[name])
                loaded.add(name)
            case 1 if name in loaded and draw.random() < 0.3:
                rack.unload(name)
                loaded.remove(name)
            case 2:
                rack.fuse()
            case 3:
                rack.restore()
            case 4 if len(chosen) < 2:
                rack.prefetch(strengths)
            case 5:
                with rack.using(strengths):
                    pass
            case _:
                rack.activate(strengths)
    for name in adapters.keys() - loaded:
        rack.load(name, adapters[name])
    rack.activate({"three": 0.3, "one": -0.5})
    for switch in (rack.restore, rack.fuse):
        switch()
        actual, weights = forward(model), bits(model)
        rack.activate({})
        assert switch == rack.restore or same(model, base)
        twin = copy.deepcopy(model)
        fresh = Rack(twin)
        for name, adapter in adapters.items():
            fresh.load(name, adapter)
        if switch == rack.fuse:
            fresh.fuse()
        fresh.activate({"one": -0.5, "three": 0.3})
        assert torch.equal(forward(twin), actual)
        assert all(torch.equal(p.data, weights[name][1]) for name, p in twin.named_parameters())
        rack.activate({"one": -0.5, "three": 0.3})
    rack.activate({})
    assert same(model, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_restoring_gives_back_the_very_bits(model, dtype):
    model.to(dtype)
    before = bits(model)
    rack, adapters = Rack(model), adapters_for(model)
    for name, adapter in adapters.items():
        rack.load(name, adapter)
    rack.fuse()
    for strength in (0.3, 1.0, -2.0):
        rack.activate({"one": strength, "three": 1.0})
        rack.activate({"two": strength})
    assert not same(model, before)
    rack.restore()
    assert same(model, before)


def test_a_failure_in_the_middle_of_a_fuse_leaves_what_was_there(rack, model, forward, monkeypatch):
    rack.activate({"one": 0.5})
    rack.fuse()
    before, weights = forward(model), bits(model)
    from reelora.lora import fused as room

    real, calls = room.fuse_into, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            kwargs["out"].fill_(7)
            raise MemoryError
        return real(*args, **kwargs)

    monkeypatch.setattr(room, "fuse_into", failing)
    with pytest.raises(MemoryError):
        rack.activate({"three": 1.0})
    monkeypatch.undo()
    assert torch.equal(forward(model), before)
    assert same(model, weights)


# ---- other hands on the model


def test_projections_that_were_fused_are_refused_before_and_noticed_after(transformer, forward):
    rack = Rack(transformer)
    rack.load("one", adapter_for(transformer))
    transformer.fuse_qkv_projections()
    with pytest.raises(MismatchError, match="unfuse_qkv_projections"):
        rack.activate({"one": 1.0})
    transformer.unfuse_qkv_projections()
    rack.activate({"one": 1.0})
    transformer.fuse_qkv_projections()
    with pytest.raises(MismatchError, match="fuse_qkv_projections"):
        forward(transformer)
    transformer.unfuse_qkv_projections()
    forward(transformer)


def test_a_module_that_was_replaced_meanwhile_is_noticed(transformer):
    rack = Rack(transformer)
    rack.load("one", adapter_for(transformer))
    attach(transformer, LoraSpec(rank=4))
    with pytest.raises(MismatchError, match="were replaced since this Rack was made"):
        rack.activate({"one": 1.0})


def test_query_key_and_value_share_one_product_and_nothing_changes(transformer, forward):
    rack = Rack(transformer)
    rack.load("one", adapter_for(transformer))
    rack.activate({"one": 1.0})
    attention = transformer.transformer_blocks[0].attn1
    shared = attention.to_q.shared_a
    assert shared.untyped_storage().data_ptr() == attention.to_v.lora_a.untyped_storage().data_ptr()
    assert type(attention.processor).__name__ == "StackedAttention"
    together = forward(transformer)
    for module in transformer.modules():
        if hasattr(module, "shared_a"):
            module.shared_a = None
    assert close(forward(transformer), together)
    rack.activate({})
    assert type(attention.processor).__name__ == "CogVideoXAttnProcessor2_0"


# ---- one batch, several adapters


def test_samples_of_one_batch_run_with_adapters_of_their_own(rack, model, forward):
    base = forward(model)
    rack.activate({"one": 0.5, "two": 1.0})
    first = forward(model)
    rack.activate_per_sample([{"one": 0.5, "two": 1.0}, None])
    actual = forward(model)
    assert close(actual[0], first[0])
    assert close(actual[1], base[1])
    rack.activate_per_sample([{"three": 1.0}] * 3)
    with pytest.raises(MismatchError, match="2 rows, adapters are set for 3 samples"):
        forward(model)
    with pytest.raises(ConfigError, match="restore"):
        rack.fuse()
    rack.activate({})
    assert torch.equal(forward(model), base)
