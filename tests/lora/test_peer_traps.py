"""The traps of diffusers 0.42.1 + PEFT 0.21.2: each goes wrong there in a known way, and a Rack does it right.

A model's state is told in strengths: the change of one Linear, taken apart into the updates of the adapters "a" and "b". What a
forward does is `Sides.acting`, what the stored weight holds is `Sides.held`.
"""

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.loaders.peft import PeftAdapterMixin
from safetensors.torch import load_file, save_file
from sides import PATH, Sides, layers_of_peft, weight_in
from test_using import FIRST, adapter_for, remade
from tiny import run, tiny_transformer
from tiny_models import build_transformer
from torch import nn
from torch._dynamo.testing import CompileCounter

from reelora.adapters import Adapter, Pair
from reelora.errors import AdapterError, ConfigError, MismatchError, ReeloraError
from reelora.lora import Rack, fused_rows

AS_TRAINED, OFF = (1.0, 0.0), (0.0, 0.0)

pytestmark = pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute in the model:UserWarning")


@pytest.fixture
def base():
    return tiny_transformer()


@pytest.fixture
def empty(base, tmp_path):
    """Both sides with nothing loaded, and the files a and b."""
    sides = Sides(base, tmp_path)
    for seed, name in enumerate("ab"):
        sides.write(name, adapter_for(base, seed=seed))
    return sides


@pytest.fixture
def sides(empty):
    """Both sides with a loaded."""
    empty.give("a")
    empty.take("a")
    return empty


@pytest.fixture
def both(sides):
    """Both sides with a and b loaded; a is the peer's active one."""
    sides.give("b")
    sides.take("b")
    sides.pipe.set_adapters("a")
    return sides


# ---- strengths, fusing and restoring


def test_fusing_again_at_the_same_strength(sides):
    sides.pipe.fuse_lora(lora_scale=0.7)
    sides.pipe.unfuse_lora()
    sides.pipe.fuse_lora(lora_scale=0.7)
    assert sides.held(sides.theirs) == (0.49, 0.0)
    for switch in (sides.rack.fuse, sides.rack.restore, sides.rack.fuse):
        sides.rack.activate({"a": 0.7})
        switch()
    assert sides.held(sides.ours) == (0.7, 0.0)


def test_changing_the_strength_while_fused_and_then_restoring(sides):
    sides.pipe.fuse_lora(lora_scale=0.7)
    sides.pipe.set_adapters("a", 1.0)
    assert sides.held(sides.theirs) == (0.7, 0.0)
    sides.pipe.unfuse_lora()
    assert sides.held(sides.theirs) == (-0.3, 0.0)
    sides.rack.activate({"a": 0.7})
    sides.rack.fuse()
    sides.rack.activate({"a": 1.0})
    assert sides.held(sides.ours) == AS_TRAINED
    sides.rack.restore()
    assert sides.is_pristine(sides.ours)


def test_a_strength_of_zero_for_one_call(sides):
    sides.pipe.set_adapters("a", 0.3)
    run(sides.theirs, attention_kwargs={"scale": 0.0})
    assert sides.acting(sides.theirs) == AS_TRAINED
    sides.rack.activate({"a": 0.3})
    with sides.rack.using({"a": 0.0}):
        assert torch.equal(run(sides.ours), run(sides.base))
    assert sides.acting(sides.ours) == (0.3, 0.0)


def test_a_strength_for_one_call_while_fused(sides):
    sides.pipe.set_adapters("a", 0.3)
    sides.pipe.fuse_lora()
    assert torch.equal(run(sides.theirs, attention_kwargs={"scale": 0.0}), run(sides.theirs))
    sides.pipe.unfuse_lora()
    assert sides.held(sides.theirs) == (-0.7, 0.0)
    sides.rack.activate({"a": 0.3})
    sides.rack.fuse()
    with sides.rack.using({"a": 0.0}):
        assert torch.equal(run(sides.ours), run(sides.base))
    sides.rack.restore()
    assert sides.is_pristine(sides.ours)


def test_fusing_one_adapter_at_a_strength_while_another_is_active(both):
    both.pipe.fuse_lora(adapter_names=["b"], lora_scale=0.5)
    assert both.held(both.theirs) == (0.0, 1.0)
    both.pipe.unfuse_lora()
    assert both.acting(both.theirs) == (0.5, 0.0)
    both.rack.activate({"b": 0.5})
    both.rack.fuse()
    assert both.held(both.ours) == (0.0, 0.5)
    both.rack.restore()
    both.rack.activate({"a": 1.0})
    assert both.acting(both.ours) == AS_TRAINED


def test_loading_another_while_one_is_fused(sides):
    sides.pipe.fuse_lora()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        sides.give("b")
    assert sides.held(sides.theirs) == OFF
    assert sides.pipe.fused_loras == {"a"}
    sides.rack.activate({"a": 1.0})
    sides.rack.fuse()
    sides.take("b")
    assert sides.held(sides.ours) == AS_TRAINED


def test_loading_another_beside_an_active_one(sides):
    sides.give("b")
    assert sides.acting(sides.theirs) == (0.0, 1.0)
    sides.rack.activate({"a": 1.0})
    sides.take("b")
    assert sides.acting(sides.ours) == AS_TRAINED


@pytest.mark.parametrize("forget", [lambda pipe: pipe.delete_adapters("a"), lambda pipe: pipe.unload_lora_weights()])
def test_forgetting_an_adapter_that_is_fused(sides, forget):
    sides.pipe.fuse_lora()
    forget(sides.pipe)
    sides.pipe.unfuse_lora()
    assert sides.held(sides.theirs) == AS_TRAINED
    assert not sides.pipe.get_list_adapters().get("transformer")
    sides.rack.activate({"a": 1.0})
    sides.rack.fuse()
    sides.rack.unload("a")
    assert sides.is_pristine(sides.ours)


def test_switching_off_what_is_fused(sides):
    sides.pipe.fuse_lora()
    sides.pipe.disable_lora()
    assert sides.held(sides.theirs) == AS_TRAINED
    run(sides.theirs)  # which takes it out of the weights, in the middle of a forward
    assert sides.held(sides.theirs) == OFF
    assert sides.pipe.fused_loras == {"a"}
    sides.rack.activate({"a": 1.0})
    sides.rack.fuse()
    sides.rack.activate({})
    assert sides.is_pristine(sides.ours)


def test_forgetting_an_adapter_takes_its_modules_out(sides):
    sides.pipe.delete_adapters("a")
    assert len(layers_of_peft(sides.theirs)) == 8
    modules = dict(sides.base.named_modules()).keys()
    sides.rack.activate({"a": 1.0})
    sides.rack.unload("a")
    assert dict(sides.ours.named_modules()).keys() == modules
    assert type(sides.ours.get_submodule(PATH)) is nn.Linear


def test_restoring_gives_the_very_bits_in_bfloat16(base, tmp_path):
    sides = Sides(base.bfloat16(), tmp_path)
    sides.write("a", adapter_for(base))
    sides.give("a")
    sides.take("a")
    sides.pipe.fuse_lora()
    sides.pipe.unfuse_lora()
    assert float((weight_in(sides.theirs) != weight_in(base)).double().mean()) > 0.05
    sides.rack.activate({"a": 1.0})
    sides.rack.fuse()
    sides.rack.restore()
    assert sides.is_pristine(sides.ours)


def test_several_adapters_are_added_with_one_rounding(base, tmp_path):
    sides = Sides(base.bfloat16(), tmp_path)
    for seed, name in enumerate("abcd"):
        sides.write(name, adapter_for(base, seed=seed))
        sides.give(name)
        sides.take(name)
    sides.pipe.set_adapters([*"abcd"])
    sides.pipe.fuse_lora()
    sides.rack.fuse()
    sides.rack.activate(dict.fromkeys("abcd", 1.0))
    uses = [(adapter.pairs[FIRST], 1.0) for adapter in sides.adapters.values()]
    exact = fused_rows(weight_in(base), uses, slice(None)).bfloat16()
    theirs, ours = (int((weight_in(model) != exact).sum()) for model in (sides.theirs, sides.ours))
    assert theirs > 0.05 * exact.numel()
    assert ours == 0
    assert {layer.lora_A["a"].weight.dtype for layer in layers_of_peft(sides.theirs)} == {torch.bfloat16}  # of a float32 file


# ---- names and paths


def test_a_name_that_nobody_chose(empty, tmp_path):
    for name in "aab":
        empty.give(name, adapter_name=None)
    empty.pipe.delete_adapters("default_0")
    empty.give("a", adapter_name=None)
    assert empty.pipe.get_list_adapters() == {"transformer": ["default_1", "default_2"]}
    empty.pipe.set_adapters("default_2")
    assert empty.acting(empty.theirs) == AS_TRAINED  # it was b
    empty.take("a")
    with pytest.raises(ConfigError, match="'a' is registered already"):
        empty.take("a", tmp_path / "b.safetensors")


def test_a_rule_for_the_second_of_eleven_blocks(tmp_path):
    sides = Sides(build_transformer("2B", num_layers=11), tmp_path)
    sides.write("a", adapter_for(sides.base))
    sides.give("a")
    sides.take("a")
    sides.pipe.set_adapters("a", {"transformer": {"transformer_blocks.1": 0.0}})
    sides.rack.activate({"a": {"transformer_blocks.1.*": 0.0, "*": 1.0}})
    theirs, ours = (
        [sides.acting(model, f"transformer_blocks.{block}.attn1.to_q") for block in (0, 1, 10)]
        for model in (sides.theirs, sides.ours)
    )
    assert theirs == [(1.0,), (0.0,), (0.0,)]
    assert ours == [(1.0,), (0.0,), (1.0,)]


def test_a_rule_where_a_module_has_a_short_path(base, tmp_path):
    sides = Sides(base, tmp_path)
    draw = torch.Generator().manual_seed(0)
    out, inner = base.proj_out.weight.shape
    pair = Pair(torch.randn(2, inner, generator=draw), torch.randn(out, 2, generator=draw), 0.5)
    sides.write("a", remade(adapter_for(base), {"transformer.proj_out": pair}))
    sides.give("a")
    sides.take("a")
    with pytest.raises(IndexError):
        sides.pipe.set_adapters("a", {"transformer": {"transformer_blocks.0": 0.5}})
    sides.rack.activate({"a": {"proj_out": 0.5}})
    assert sides.acting(sides.ours, "proj_out") == (0.5,)


class CollidingTransformerModel(nn.Module, PeftAdapterMixin):
    """Two modules whose paths differ in a dot alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.layers_1 = nn.Linear(8, 8)


def test_ranks_that_differ_where_paths_nearly_agree(tmp_path):
    model: Any = CollidingTransformerModel()
    ranks = {"layers.0": 4, "layers.1": 2, "layers_1": 4}
    pairs = {f"transformer.{path}": Pair(torch.ones(rank, 8), torch.ones(8, rank), 0.5) for path, rank in ranks.items()}
    adapter = Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test")
    plain = {f"transformer.{path}.lora_{side}.weight": factor for path, side, factor in factors(adapter)}
    save_file(plain, tmp_path / "a.safetensors")
    with pytest.raises(RuntimeError, match=r"layers_1.*size mismatch|size mismatch.*layers_1"):
        model.load_lora_adapter(tmp_path / "a.safetensors")
    model = CollidingTransformerModel()
    rack = Rack(model)
    rack.load("a", tmp_path / "a.safetensors", alpha=4)
    rack.activate({"a": 1.0})
    assert len(rack.state.branches) == 3


# ---- files


def test_alpha_in_a_header_that_is_not_read(empty):
    """A model that loads a file reads its header only with ``use_safetensors=True``; a pipeline always does."""
    scale = empty.adapters["a"].pairs[FIRST].scale
    assert scale != 1
    empty.theirs.load_lora_adapter(empty.folder / "a.safetensors", prefix="transformer", adapter_name="a")
    assert empty.acting(empty.theirs) == (1 / scale, 0.0)
    empty.take("a")
    empty.rack.activate({"a": 1.0})
    assert empty.acting(empty.ours) == AS_TRAINED


def factors(adapter: Adapter) -> list[tuple[str, str, torch.Tensor]]:
    """Path, side and factor of all pairs."""
    sided = [
        (name.partition(".")[2], side, getattr(pair, side.lower())) for name, pair in adapter.pairs.items() for side in "AB"
    ]
    return [(path, side, factor.contiguous()) for path, side, factor in sided]


def spoiled(path: Path, edit: Callable[[dict[str, torch.Tensor]], object], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file again with changed tensors."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata=dict(metadata or {}))


def test_a_file_of_another_layout(empty, tmp_path):
    plain = {f"diffusion_model.{path}.lora_{side}.weight": factor for path, side, factor in factors(empty.adapters["a"])}
    save_file(plain, tmp_path / "a.safetensors")
    empty.give("a")
    assert not layers_of_peft(empty.theirs)
    empty.rack.load("a", tmp_path / "a.safetensors", alpha=2)
    empty.rack.activate({"a": 1.0})
    assert empty.acting(empty.ours) == AS_TRAINED


def test_an_adapter_of_a_deeper_model(empty, tmp_path):
    deep = {name.replace("blocks.1.", "blocks.30."): pair for name, pair in empty.adapters["a"].pairs.items()}
    empty.write("a", remade(empty.adapters["a"], deep))
    empty.give("a")
    assert len(layers_of_peft(empty.theirs)) == 4
    with pytest.raises(MismatchError, match=r"4 of 8 adapter paths.*blocks\.30"):
        empty.take("a")


def test_a_pair_without_its_other_half(empty, tmp_path):
    spoiled(tmp_path / "a.safetensors", lambda tensors: tensors.pop(f"transformer.{PATH}.lora_B.weight"))
    empty.give("a")
    layer: Any = empty.theirs.get_submodule(PATH)
    assert layer.lora_B["a"].weight.is_meta
    with pytest.raises(ReeloraError, match=re.escape(PATH)):
        empty.rack.load("a", tmp_path / "a.safetensors", alpha=2)
    assert empty.is_pristine(empty.ours)


def test_a_value_that_is_not_a_number(empty, tmp_path):
    pair = empty.adapters["a"].pairs[FIRST]
    poisoned = remade(empty.adapters["a"], {FIRST: Pair(pair.a, pair.b * float("nan"), pair.scale)})
    plain = {f"transformer.{path}.lora_{side}.weight": factor for path, side, factor in factors(poisoned)}
    save_file(plain, tmp_path / "a.safetensors")
    empty.give("a")
    empty.pipe.fuse_lora()
    empty.pipe.unfuse_lora()
    assert weight_in(empty.theirs).isnan().all()
    empty.rack.load("a", poisoned)
    for switch in (empty.rack.restore, empty.rack.fuse):
        switch()
        with pytest.raises(AdapterError, match="NaN or infinite"):
            empty.rack.activate({"a": 1.0})
    assert empty.is_pristine(empty.ours)


def test_a_header_with_a_field_of_tomorrow(empty, tmp_path):
    fields = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.invented_in_2030": True}
    fields["transformer.target_modules"] = ["to_q", "to_k", "to_v", "to_out.0"]
    spoiled(tmp_path / "a.safetensors", lambda tensors: None, {"lora_adapter_metadata": json.dumps(fields)})
    with pytest.raises(TypeError, match="`LoraConfig` class could not be instantiated"):
        empty.give("a")
    empty.take("a")
    empty.rack.activate({"a": 1.0})
    assert empty.acting(empty.ours) == AS_TRAINED


def test_a_dora_is_not_run_as_a_plain_lora(empty, tmp_path):
    norms = {f"transformer.{path}.dora_scale": torch.ones(32) for path, side, _ in factors(empty.adapters["a"]) if side == "A"}
    spoiled(tmp_path / "a.safetensors", lambda tensors: tensors.update(norms))
    empty.give("a")
    assert empty.acting(empty.theirs) == (2.0, 0.0)
    with pytest.raises(ReeloraError, match="dora"):
        empty.rack.load("a", tmp_path / "a.safetensors", alpha=2)


def test_nothing_becomes_trainable(sides):
    assert run(sides.theirs).requires_grad
    sides.rack.activate({"a": 1.0})
    assert not run(sides.ours).requires_grad


# ---- hot swaps


def test_a_swap_that_fails(empty):
    few = {name: pair for name, pair in empty.adapters["a"].pairs.items() if name.endswith("to_q")}
    empty.write("a", remade(empty.adapters["a"], few))
    empty.give("a")
    empty.take("a")
    empty.rack.activate({"a": 0.3})
    with pytest.raises(RuntimeError, match="b"):
        empty.give("b", adapter_name="a", hotswap=True)
    assert empty.acting(empty.theirs) == OFF
    bad = empty.adapters["b"].pairs[FIRST]
    wrong = {**empty.adapters["b"].pairs, FIRST: Pair(bad.a[:, :16].contiguous(), bad.b, bad.scale)}
    with pytest.raises(MismatchError):
        empty.rack.load("wrong", remade(empty.adapters["b"], wrong))
    assert empty.acting(empty.ours) == (0.3, 0.0)
    empty.take("b")  # more modules than a has: nothing special
    empty.rack.activate({"b": 1.0})
    assert empty.acting(empty.ours) == (0.0, 1.0)


def test_a_swap_keeps_the_strength_and_takes_the_alpha_of_the_new_file(sides, base):
    sides.write("b", adapter_for(base, alpha=8.0, seed=1))
    sides.pipe.set_adapters("a", 0.3)
    sides.give("b", adapter_name="a", hotswap=True)
    assert sides.acting(sides.theirs) == (0.0, 1.0)
    sides.pipe.set_adapters("a", 0.3)
    assert sides.acting(sides.theirs) == (0.0, 0.3 / 4)
    sides.take("b")
    sides.rack.activate({"a": 0.3})
    sides.rack.activate({"b": 0.3})
    assert sides.acting(sides.ours) == (0.0, 0.3)


def test_a_change_of_strength_compiles_nothing_again(empty):
    empty.theirs.enable_lora_hotswap(target_rank=8)
    empty.give("a")
    empty.take("a")
    empty.rack.activate({"a": 1.0})
    assert num_compiled(empty.theirs, lambda: empty.pipe.set_adapters("a", 0.5)) == 2
    assert num_compiled(empty.ours, lambda: empty.rack.activate({"a": 0.5})) == 1


@torch.no_grad()
def num_compiled(model: nn.Module, change: Callable[[], object]) -> int:
    """How often one layer is compiled to run before and after a change."""
    counter = CompileCounter()
    layer = torch.compile(model.get_submodule(PATH), backend=counter)
    layer(torch.ones(1, 32))
    change()
    layer(torch.ones(1, 32))
    return counter.frame_count


# ---- other hands on the model


def test_projections_that_are_fused_after_loading(sides):
    sides.theirs.fuse_qkv_projections()
    base = copy.deepcopy(sides.base)
    base.fuse_qkv_projections()
    for block in sides.theirs.transformer_blocks:
        block.attn1.to_out[0].scaling["a"] = 0.0
    assert torch.equal(run(sides.theirs), run(base))
    sides.rack.activate({"a": 1.0})
    sides.ours.fuse_qkv_projections()
    with pytest.raises(MismatchError, match="fuse_qkv_projections"):
        run(sides.ours)


def test_projections_that_are_fused_before(sides):
    for model in (sides.theirs, sides.ours):
        model.fuse_qkv_projections()
    before = run(sides.theirs)
    for block in sides.theirs.transformer_blocks:
        block.attn1.to_out[0].scaling["a"] = 0.0
    sides.pipe.fuse_lora()
    assert sides.held(sides.theirs) == AS_TRAINED
    base = copy.deepcopy(sides.base)
    base.fuse_qkv_projections()
    assert torch.equal(run(sides.theirs), run(base))
    assert not torch.equal(run(sides.theirs), before)
    for switch in (sides.rack.restore, sides.rack.fuse):
        switch()
        with pytest.raises(MismatchError, match="unfuse_qkv_projections"):
            sides.rack.activate({"a": 1.0})


def test_fusing_into_weights_that_are_offloaded_one_by_one(sides):
    for model in (sides.theirs, sides.ours):
        cpu_offload(model, execution_device=torch.device("cpu"))
    sides.pipe.fuse_lora()
    assert sides.pipe.fused_loras == {"a"}
    assert torch.equal(run(sides.theirs), run(sides.base))
    sides.rack.fuse()
    sides.rack.activate({"a": 1.0})
    assert sides.acting(sides.ours) == AS_TRAINED
    assert all("sequential offload" in why for why in sides.rack.state.branches.values())


def test_fusing_into_weights_that_are_offloaded_to_disk(sides, tmp_path):
    for name, model in (("theirs", sides.theirs), ("ours", sides.ours)):
        path = str(tmp_path / name)
        apply_group_offloading(model, "cpu", "cpu", "block_level", num_blocks_per_group=1, offload_to_disk_path=path)
    unfused = run(sides.theirs)
    sides.pipe.fuse_lora()
    assert sides.pipe.fused_loras == {"a"}
    assert torch.equal(run(sides.theirs), run(sides.base))
    assert not torch.equal(run(sides.theirs), unfused)
    sides.rack.fuse()
    sides.rack.activate({"a": 1.0})
    assert torch.allclose(run(sides.ours), unfused, atol=1e-5)
    assert all("offloading to disk" in why for why in sides.rack.state.branches.values())


def test_fusing_into_weights_of_eight_bits(sides):
    for model in (sides.theirs, sides.ours):
        model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    unfused = run(sides.theirs)
    with pytest.raises(RuntimeError, match="Promotion for Float8 Types is not supported"):
        sides.pipe.fuse_lora()
    sides.rack.fuse()
    sides.rack.activate({"a": 1.0})
    assert torch.allclose(run(sides.ours), unfused, atol=1e-5)
    assert all("float8_e4m3fn" in why for why in sides.rack.state.branches.values())


def test_loading_onto_weights_of_eight_bits(empty):
    for model in (empty.theirs, empty.ours):
        model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    empty.give("a")
    assert {layer.lora_A["a"].weight.dtype for layer in layers_of_peft(empty.theirs)} == {torch.float8_e4m3fn}
    with pytest.raises(RuntimeError, match="Float8_e4m3fn"):
        run(empty.theirs)
    base = run(empty.ours)
    empty.take("a")
    empty.rack.activate({"a": 1.0})
    assert run(empty.ours).isfinite().all()
    assert not torch.equal(run(empty.ours), base)
