"""Stacks wait for their next use within a budget, and a switch costs the same however many adapters are registered."""

import copy
import sys

import pytest
import torch
from sides import PATH
from test_using import adapter_for

from reelora.adapters import Pair, write_adapter
from reelora.errors import AdapterError, ConfigError
from reelora.lora import Rack

ONE = 2 * 4 * 8 * (4 * 32)
"""Bytes of the stack of one adapter: A and B of float32, at 8 modules of 32 features, of rank 4."""


def rack_of(model, names, *, budget=100):
    """A rack with adapters of rank 4, and room for the stacks of so many."""
    rack = Rack(model, cache_bytes=budget * ONE)
    for number, name in enumerate(names):
        rack.load(name, adapter_for(model, seed=number))
    return rack


def factor(model):
    """Where the A that acts lies in memory: a stack that was kept lies where it lay."""
    return model.get_submodule(PATH).lora_a.data_ptr()


def is_kept(rack, model, name, places):
    rack.activate({name: 0.5})
    return factor(model) == places[name]


def activated(rack, model, *names):
    """Where the stack of each lies, and all of them still alive, so that no place is used twice."""
    places, alive = {}, []
    for name in names:
        rack.activate({name: 1.0})
        places[name] = factor(model)
        alive.append(model.get_submodule(PATH).lora_a)
    return places, alive


def test_the_stack_that_was_used_longest_ago_goes_first(transformer):
    rack = rack_of(transformer, "abc", budget=2)
    places, _alive = activated(rack, transformer, "a", "b")
    rack.activate({"a": 0.3})
    rack.activate({"c": 1.0})
    assert rack.state.stack_bytes == 2 * ONE
    assert is_kept(rack, transformer, "a", places)
    assert not is_kept(rack, transformer, "b", places)


def test_what_acts_stays_whatever_the_budget(transformer):
    rack = rack_of(transformer, "ab", budget=0)
    for name in "ab":
        rack.activate({name: 1.0})
        assert rack.state.stack_bytes == ONE


def test_what_is_pinned_stays_until_it_is_unpinned(transformer):
    rack = rack_of(transformer, "abcd", budget=2)
    rack.pin("a")
    places, _alive = activated(rack, transformer, "a", "b", "c", "d")
    assert is_kept(rack, transformer, "a", places)
    assert rack.state.adapters[0].is_pinned
    assert "a (pinned)" in str(rack.state)
    rack.unpin("a")
    for name in "bcd":
        rack.activate({name: 1.0})
    assert not is_kept(rack, transformer, "a", places)
    with pytest.raises(ConfigError, match="'e'"):
        rack.pin("e")


def test_the_state_tells_where_the_values_of_an_adapter_are(transformer, tmp_path):
    rack = Rack(transformer)
    write_adapter(adapter_for(transformer), tmp_path / "a.safetensors")
    rack.load("a", tmp_path / "a.safetensors")
    rack.load("b", adapter_for(transformer))
    rack.activate({"b": 1.0})
    assert [adapter.resident for adapter in rack.state.adapters] == [("file",), ("memory", "cpu")]
    assert "memory, cpu" in str(rack.state)


def test_mixes_of_pinned_adapters_with_others_may_go(transformer):
    rack = rack_of(transformer, "abc", budget=3)
    rack.pin("a")
    rack.pin("b")
    for strengths in ({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}, {"c": 1.0}):
        rack.activate(strengths)
    assert rack.state.stack_bytes == 3 * ONE  # the mix of pinned ones, and what acts


def test_an_adapter_that_is_unloaded_takes_its_stacks_and_its_pin_along(transformer):
    rack = rack_of(transformer, "ab")
    other = adapter_for(transformer, seed=7)
    rack.pin("a")
    rack.activate({"a": 1.0, "b": 1.0})
    rack.unload("a")
    assert rack.state.stack_bytes == ONE
    rack.load("a", other)
    assert not rack.state.adapters[1].is_pinned


def test_what_is_prefetched_is_found_by_any_strength_and_does_not_act_before(transformer, forward):
    plain = copy.deepcopy(transformer)
    rack = rack_of(transformer, "abc")
    rack.activate({"a": 1.0})
    before = forward(transformer)
    rack.prefetch({"b": 1.0, "c": -0.5})
    assert torch.equal(forward(transformer), before)
    assert rack.state.stack_bytes == 3 * ONE
    rack.activate({"c": 0.2, "b": 0.1})
    assert rack.state.stack_bytes == 3 * ONE
    prefetched = forward(transformer)
    fresh = rack_of(plain, "abc")
    fresh.activate({"b": 0.1, "c": 0.2})
    assert torch.equal(forward(plain), prefetched)


def test_what_cannot_be_kept_is_not_prefetched_in_silence(transformer):
    rack = rack_of(transformer, "abc", budget=2)
    rack.activate({"a": 1.0})
    with pytest.raises(ConfigError, match=rf"b, c: cache_bytes is {ONE:,} bytes too small"):
        rack.prefetch({"b": 1.0, "c": 1.0})
    rack.pin("b")
    rack.prefetch({"b": 1.0})
    with pytest.raises(ConfigError, match="unpin"):
        rack.prefetch({"c": 1.0})
    assert rack.state.stack_bytes == 2 * ONE


def test_while_fused_nothing_is_stacked_but_values_are_checked(transformer):
    rack = rack_of(transformer, "a")
    bad = adapter_for(transformer)
    pairs = {name: Pair(pair.a, pair.b * float("inf"), pair.scale) for name, pair in bad.pairs.items()}
    rack.load("bad", type(bad)(pairs=pairs, spec=None, layout="memory", scale_source="a test"))
    rack.fuse()
    rack.prefetch({"a": 1.0})
    assert rack.state.stack_bytes == 0
    with pytest.raises(AdapterError, match="NaN or infinite"):
        rack.prefetch({"bad": 1.0})


def num_calls(change):
    """How many functions, of Python and others, a change calls."""
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event.endswith("call") else None)
    try:
        change()
    finally:
        sys.setprofile(None)
    return len(calls)


def test_a_switch_does_the_same_work_however_many_adapters_are_registered(transformer):
    rack = rack_of(transformer, "ab")

    def switch() -> int:
        return num_calls(lambda: (rack.activate({"a": 0.5}), rack.activate({"b": 1.0})))

    adapter = adapter_for(transformer, seed=5)
    switch()
    few = switch()
    for number in range(50):
        rack.load(f"more {number}", adapter)
    switch()
    assert switch() == few
