"""The rack on models whose weights wait elsewhere, or in few bits: exact where it can be, a branch with a reason where not.

Here offloaded weights go from the processor to the processor; tests/gpu has the same laws on a device.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks.group_offloading import apply_group_offloading
from test_using import FIRST, adapter_for, close, remade
from torch import nn

from reelora.adapters import Magnitude, Pair
from reelora.errors import MismatchError
from reelora.lora import Rack, base_fingerprints

PATH = FIRST.partition(".")[2]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Mode:
    """A way to keep weights elsewhere."""

    enable: Callable[[Any, Path], object]
    why: str = ""
    """The reason that a rack gives for a branch; empty where it fuses."""
    hangs_on_modules: bool = False
    """Whether single modules get hooks, and not the blocks that they lie in."""
    disable: Callable[[Any], object] | None = None
    """How it is switched off again, where that can be."""


def by_group(kind: str, *, to_disk: bool = False) -> Callable[[Any, Path], None]:
    def enable(model: Any, folder: Path) -> None:
        path = str(folder) if to_disk else None
        apply_group_offloading(model, CPU, CPU, kind, num_blocks_per_group=1, offload_to_disk_path=path)

    return enable


def without_groups(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook.remove_hook("group_offloading", recurse=False)


MODES = {
    "model": Mode(lambda model, _: cpu_offload_with_hook(model, CPU), disable=remove_hook_from_module),
    "sequential": Mode(
        lambda model, _: cpu_offload(model, execution_device=CPU),
        why="sequential offload",
        hangs_on_modules=True,
        disable=lambda model: remove_hook_from_module(model, recurse=True),
    ),
    "blocks": Mode(by_group("block_level"), disable=without_groups),
    "leaves": Mode(by_group("leaf_level"), hangs_on_modules=True, disable=without_groups),
    "blocks on disk": Mode(by_group("block_level", to_disk=True), why="offloading to disk"),
    "leaves on disk": Mode(by_group("leaf_level", to_disk=True), why="offloading to disk", hangs_on_modules=True),
    "casting": Mode(
        lambda model, _: model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        why="float8_e4m3fn",
        hangs_on_modules=True,
    ),
}
MOVED = {name: mode for name, mode in MODES.items() if name != "casting"}
"""Those that leave every bit as it was."""


def rack_with(model: nn.Module, adapter: Any = None) -> Rack:
    rack = Rack(model)
    rack.load("one", adapter or adapter_for(model))
    return rack


@pytest.fixture
def plain(transformer):
    """The model as it is without any offloading."""
    return copy.deepcopy(transformer)


@pytest.mark.parametrize("mode", MOVED.values(), ids=MOVED.keys())
def test_branches_act_to_the_bit_as_without_offloading(transformer, plain, forward, tmp_path, mode):
    adapter = adapter_for(transformer)
    mode.enable(transformer, tmp_path)
    for model in (transformer, plain):
        rack_with(model, adapter).activate({"one": 0.7})
    for _ in range(2):  # the first forward may move what the second finds
        assert torch.equal(forward(transformer), forward(plain))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_fusing_is_exact_or_leaves_branches_and_says_why(transformer, forward, tmp_path, mode):
    adapter = adapter_for(transformer)
    mode.enable(transformer, tmp_path)
    base = forward(transformer)
    rack = rack_with(transformer, adapter)
    rack.activate({"one": 0.7})
    branches = forward(transformer)
    assert not close(branches, base)
    rack.fuse()
    for _ in range(2):
        assert (torch.equal if mode.why else close)(forward(transformer), branches)
    assert rack.state.num_fused == (0 if mode.why else len(adapter.pairs))
    assert len(rack.state.branches) == (len(adapter.pairs) if mode.why else 0)
    assert all(mode.why in why for why in rack.state.branches.values())
    rack.restore()
    assert torch.equal(forward(transformer), branches)
    rack.activate({})
    assert torch.equal(forward(transformer), base)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("is_fused", [False, True], ids=["branches", "fused"])
def test_offloading_that_comes_later_goes_on_right_or_is_refused(transformer, plain, forward, tmp_path, mode, is_fused):
    adapter = adapter_for(transformer)
    rack, expected = rack_with(transformer, adapter), rack_with(plain, adapter)
    for one in (rack, expected):
        one.activate({"one": 0.7})
        if is_fused:
            one.fuse()
    mode.enable(transformer, tmp_path)
    keeps_bits = mode in MOVED.values()
    assert not keeps_bits or torch.equal(forward(transformer), forward(plain))
    if mode.why if is_fused else mode.hangs_on_modules:
        with pytest.raises(MismatchError, match="was switched on while"):
            rack.activate({})
    else:
        rack.activate({})
        expected.activate({})
    assert not keeps_bits or torch.equal(forward(transformer), forward(plain))


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode.disable])
@pytest.mark.parametrize("is_fused", [False, True], ids=["branches", "fused"])
def test_offloading_that_is_switched_off_again_leaves_nothing(transformer, plain, forward, tmp_path, name, is_fused):
    mode, rack = MODES[name], rack_with(transformer)
    rack.activate({"one": 0.7})
    if is_fused:
        rack.fuse()
    mode.enable(transformer, tmp_path)
    forward(transformer)
    assert mode.disable
    mode.disable(transformer)
    rack.activate({})
    assert torch.equal(forward(transformer), forward(plain))
    assert all(torch.equal(now, then) for now, then in zip(transformer.parameters(), plain.parameters(), strict=True))


def test_branches_compute_in_the_dtype_that_weights_of_eight_bits_are_cast_to(transformer):
    transformer.bfloat16()
    transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    rack_with(transformer).activate({"one": 1.0})
    layer = transformer.get_submodule(PATH)
    assert (layer.weight.dtype, layer.lora_a.dtype, layer.lora_b.dtype) == (torch.float8_e4m3fn, torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("name", ["sequential", "blocks on disk", "casting"])
def test_a_base_whose_values_cannot_be_read_is_told_by_its_layers(transformer, tmp_path, name):
    adapter = adapter_for(transformer).with_provenance(**base_fingerprints(transformer))
    MODES[name].enable(transformer, tmp_path)
    rack = Rack(transformer)
    with pytest.raises(MismatchError, match="strict_base"):
        rack.load("one", adapter, strict_base=True)
    rack.load("one", adapter)
    ((note,),) = (adapter.notes for adapter in rack.state.adapters)
    assert "nobody can tell" in note


@pytest.mark.parametrize("name", ["sequential", "leaves on disk", "casting"])
def test_a_dora_is_refused_where_the_weight_that_it_changes_is_not_there(transformer, tmp_path, name):
    adapter = adapter_for(transformer)
    pair = adapter.pairs[FIRST]
    dora = Pair(pair.a, pair.b, pair.scale, magnitude=Magnitude(torch.ones(32), "out", "PEFT"))
    MODES[name].enable(transformer, tmp_path)
    rack = rack_with(transformer, remade(adapter, {FIRST: dora}))
    with pytest.raises(MismatchError, match=f"one is a DoRA, and .*to_q cannot be: .*{MODES[name].why}"):
        rack.activate({"one": 1.0})


@pytest.mark.parametrize("is_fused", [False, True], ids=["branches", "fused"])
def test_a_model_that_is_cast_while_adapters_act_becomes_what_casting_its_base_gives(transformer, plain, forward, is_fused):
    adapter = adapter_for(transformer)
    rack = rack_with(transformer, adapter)
    if is_fused:
        rack.fuse()
    rack.activate({"one": 0.7})
    for model in (transformer, plain):
        model.bfloat16()
    expected = rack_with(plain, adapter)
    if is_fused:
        expected.fuse()
    for strengths in ({"one": 0.7}, {}):
        rack.activate(strengths)
        expected.activate(strengths)
        assert torch.equal(forward(transformer, dtype=torch.bfloat16), forward(plain, dtype=torch.bfloat16))
