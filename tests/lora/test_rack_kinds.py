"""The rack with every kind of adapter, module and home, and under a compiler."""

import copy
import warnings
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from peft import LoraConfig, get_peft_model
from test_using import adapter_for, close, remade
from torch._dynamo.testing import CompileCounter

from reelora.adapters import Adapter, Pair, read_adapter
from reelora.errors import AdapterError, ConfigError
from reelora.lora import Rack, dense_update, use_attention

CONV = "unet.down_blocks.0.resnets.0.conv1"


def dora_of(model, folder):
    """A model wrapped by PEFT with a DoRA on it, and what PEFT saved of it."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_v"], use_dora=True)
    wrapped = get_peft_model(copy.deepcopy(model), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "lora_magnitude_vector" in name:
            parameter.data *= 1.1
    wrapped.save_pretrained(folder)
    return wrapped.eval(), read_adapter(folder)


def named(adapter, role):
    """The same adapter for a model of a role that its file does not tell."""
    pairs = {f"{role}.{name.partition('.')[2]}": pair for name, pair in adapter.pairs.items()}
    return remade(adapter, pairs)


@pytest.mark.parametrize("is_fused", [False, True], ids=["branches", "fused"])
def test_a_dora_of_peft_acts_as_in_peft_and_at_strength_zero_is_the_base(transformer, forward, tmp_path, is_fused):
    wrapped, adapter = dora_of(transformer, tmp_path)
    base = forward(transformer)
    rack = Rack(transformer)
    rack.load("dora", named(adapter, "transformer"))
    if is_fused:
        rack.fuse()
    rack.activate({"dora": 1.0})
    with torch.no_grad():
        assert close(forward(transformer), forward(wrapped.base_model.model))
        assert not close(forward(transformer), base)
    rack.activate({"dora": 0.0})
    assert torch.equal(forward(transformer), base)


def conv_adapter(unet, *, name=CONV, rank=3):
    weight = unet.get_submodule(name.partition(".")[2]).weight
    draw = torch.Generator().manual_seed(4)
    out, inner = weight.shape[0], weight[0].numel()
    pair = Pair(
        torch.randn(rank, inner, generator=draw),
        torch.randn(out, rank, generator=draw) / 10,
        0.5,
        kernel=tuple(weight.shape[2:]),
    )
    return Adapter(pairs={name: pair}, spec=None, layout="memory", scale_source="a test")


def test_a_convolution_acts_the_same_as_a_branch_fused_and_as_its_dense_update(unet, forward):
    adapter = conv_adapter(unet)
    twin = copy.deepcopy(unet)
    weight = twin.get_submodule(CONV.partition(".")[2]).weight
    weight.data += 0.8 * adapter.delta(CONV).view_as(weight)
    rack = Rack(unet)
    rack.load("conv", adapter)
    rack.activate({"conv": 0.8})
    assert close(forward(unet), forward(twin))
    rack.fuse()
    assert close(forward(unet), forward(twin))
    rack.restore()
    rack.activate_per_sample([{"conv": 0.8}, None])
    assert close(forward(unet)[0], forward(twin)[0])


def test_a_convolution_over_time_acts_the_same_as_a_branch_fused_and_as_its_dense_update():
    torch.manual_seed(0)
    shape = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4}
    blocks = {"down_block_types": ("DownBlock3D",), "up_block_types": ("UpBlock3D",), "cross_attention_dim": 16}
    unet: Any = UNet3DConditionModel(sample_size=8, in_channels=3, out_channels=3, **shape, **blocks).eval()
    name = "unet.down_blocks.0.temp_convs.0.conv4.3"
    adapter, twin = conv_adapter(unet, name=name), copy.deepcopy(unet)
    weight = twin.get_submodule(name.partition(".")[2]).weight
    assert weight.dim() == 5
    weight.data += 0.8 * adapter.delta(name).view_as(weight)
    clip, text = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 5, 16)
    expected, base = twin(clip, 5, text).sample, unet(clip, 5, text).sample
    rack = Rack(unet)
    rack.load("conv", adapter)
    rack.activate({"conv": 0.8})
    assert close(unet(clip, 5, text).sample, expected)
    assert not close(base, expected)
    rack.fuse()
    assert close(unet(clip, 5, text).sample, expected)
    rack.activate({})
    assert torch.equal(unet(clip, 5, text).sample, base)


def test_other_adapters_and_strengths_compile_nothing_again(transformer, forward):
    counter = CompileCounter()
    rack = Rack(transformer, rank_bucket=8)
    for number, rank in enumerate((2, 8, 5)):
        rack.load(f"rank {rank}", adapter_for(transformer, rank=rank, seed=number))
    rack.activate({"rank 2": 1.0})
    compiled = torch.compile(transformer, backend=counter)
    inputs = {"hidden_states": torch.randn(1, 3, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 8, 16)}
    with torch.no_grad():
        compiled(**inputs, timestep=torch.tensor([5]))
        first = counter.frame_count
        for strengths in ({"rank 2": 0.5}, {"rank 8": 1.0}, {"rank 5": -1.0}, {"rank 2": 1.0, "rank 5": 0.3}):
            rack.activate(strengths)
            actual = compiled(**inputs, timestep=torch.tensor([5])).sample
            assert close(actual, transformer(**inputs, timestep=torch.tensor([5])).sample)
    assert first > 0
    assert counter.frame_count == first


def test_an_attention_backend_that_was_set_stays_when_adapters_went_and_came_back(transformer):
    attention = transformer.transformer_blocks[0].attn1
    rack = Rack(transformer)
    rack.load("one", adapter_for(transformer))
    rack.activate({"one": 1.0})
    use_attention(transformer, "_native_math")  # as diffusers' own setter, which sets it for all models besides
    rack.activate({})
    rack.activate({"one": 0.5})
    assert attention.processor._attention_backend == "_native_math"


def test_a_weight_of_eight_bits_keeps_a_branch_and_the_state_says_so(transformer):
    rack = Rack(transformer)
    adapter = adapter_for(transformer)
    rack.load("one", adapter)
    linear = transformer.transformer_blocks[0].attn1.to_q
    linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
    rack.activate({"one": 1.0})
    rack.fuse()
    (name,) = rack.state.branches
    assert name.endswith("blocks.0.attn1.to_q")
    assert "float8" in rack.state.branches[name]
    assert rack.state.num_fused == len(adapter.pairs) - 1
    assert name in str(rack.state)


def test_a_vanishing_adapter_is_warned_about_and_can_keep_branches(transformer):
    transformer.bfloat16()
    faint = adapter_for(transformer)
    pairs = {name: Pair(pair.a, pair.b * 1e-3, pair.scale) for name, pair in faint.pairs.items()}
    rack = Rack(transformer)
    rack.load("faint", remade(faint, pairs))
    rack.fuse()
    with pytest.warns(UserWarning, match="keep_branches_over"):
        rack.activate({"faint": 1.0})
    careful = Rack(copy.deepcopy(transformer), keep_branches_over=0.5)
    careful.load("faint", remade(faint, pairs))
    careful.fuse()
    careful.activate({"faint": 1.0})
    assert len(careful.state.branches) == len(pairs)
    assert careful.state.num_fused == 0


def test_stochastic_rounding_keeps_small_updates_on_average_and_is_a_function_of_state_and_seed(transformer):
    transformer.bfloat16()
    faint = adapter_for(transformer)
    pairs = {name: Pair(pair.a, pair.b * 1e-3, pair.scale) for name, pair in faint.pairs.items()}
    pristine = {name: transformer.get_submodule(name.partition(".")[2]).weight.detach().clone() for name in pairs}

    def kept_share(rounding, seed):
        """How much of the update is in the weights: their change along it."""
        rack = Rack(transformer, rounding=rounding, seed=seed)
        rack.load("faint", remade(faint, pairs))
        rack.fuse()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            rack.activate({"faint": -0.5})
            rack.activate({"faint": 1.0})
        assert bool(told) == (rounding == "nearest")
        fused = {name: transformer.get_submodule(name.partition(".")[2]).weight.detach().clone() for name in pairs}
        rack.activate({})
        updates = {name: dense_update(pristine[name], pair, 1.0) for name, pair in pairs.items()}
        along = sum(((fused[name].float() - pristine[name].float()) * updates[name]).sum() for name in pairs)
        return float(along / sum(update.square().sum() for update in updates.values())), fused

    draws = [kept_share("stochastic", seed) for seed in (0, 0, 1, 2, 3)]
    assert all(torch.equal(draws[0][1][name], draws[1][1][name]) for name in pairs)
    assert not all(torch.equal(draws[0][1][name], draws[2][1][name]) for name in pairs)
    mean = sum(share for share, _ in draws[1:]) / 4
    assert abs(mean - 1) < abs(kept_share("nearest", 0)[0] - 1)
    assert all(torch.equal(transformer.get_submodule(name.partition(".")[2]).weight, pristine[name]) for name in pairs)
    with pytest.raises(ConfigError, match=r"There is no rounding 'stocastic'.*stochastic"):
        Rack(transformer, rounding="stocastic")


def test_a_dora_is_refused_for_single_samples(transformer, tmp_path):
    _, adapter = dora_of(transformer, tmp_path)
    rack = Rack(transformer)
    rack.load("dora", named(adapter, "transformer"))
    with pytest.raises(AdapterError, match="DoRA"):
        rack.activate_per_sample([{"dora": 1.0}, None])
