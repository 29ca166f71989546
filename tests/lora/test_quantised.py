"""The rack on bases that bitsandbytes or torchao have quantised, and training beside them: the packed weights stay.

Both work on a processor, but diffusers imports what is installed, slowly and with warnings: they have an extra of their own.
"""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from late_copies import LateCopies
from sides import PATH
from test_frozen import branched, figures
from test_frozen import weight as weight_of
from test_using import adapter_for
from tiny import run, tiny_transformer
from torch import nn

from reelora.errors import MismatchError
from reelora.lora import Rack, base_fingerprints, roads, store_base
from reelora.lora.storage import FORMS
from reelora.plan import rehearse
from reelora.train.recompute import ways_of

pytestmark = pytest.mark.quantised

KINDS = ("to_q", "to_k", "to_v", "to_out.0")


def by_bitsandbytes(model: nn.Module, name: str, **settings: Any) -> None:
    """Replace the Linears of attentions as diffusers does."""
    make = getattr(import_module("bitsandbytes").nn, name)
    for path, linear in [*model.named_modules()]:
        if isinstance(linear, nn.Linear) and path.endswith(KINDS):
            packed = make(linear.in_features, linear.out_features, bias=linear.bias is not None, **settings)
            packed.load_state_dict(linear.state_dict())
            parent, _, leaf = path.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = packed.to("cpu")


def by_torchao(model: nn.Module) -> None:
    torchao = import_module("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda module, path: path.endswith(KINDS))


QUANTISERS = {
    "bitsandbytes 4": (lambda model: by_bitsandbytes(model, "Linear4bit", compute_dtype=torch.bfloat16), "Params4bit"),
    "bitsandbytes 8": (lambda model: by_bitsandbytes(model, "Linear8bitLt", has_fp16_weights=False), "Int8Params"),
    "torchao int8": (by_torchao, "Int8Tensor"),
}


@pytest.fixture
def plain(transformer):
    """The model in bfloat16, before it is quantised."""
    return transformer.bfloat16()


@pytest.fixture(params=QUANTISERS.values(), ids=list(QUANTISERS))
def quantised(request, plain):
    """A quantised copy, and how its weights are called."""
    quantise, kind = request.param
    packed = copy.deepcopy(plain)
    quantise(packed)
    return packed, kind


def test_an_adapter_adds_its_update_beside_the_packed_weight(plain, quantised):
    model, _ = quantised
    adapter, x = adapter_for(plain), torch.eye(32, dtype=torch.bfloat16)
    layer = model.get_submodule(PATH)
    before = layer(x)
    rack = Rack(model)
    rack.load("one", adapter)
    rack.activate({"one": 7.0})  # for a change that the rounding of the output cannot hide
    change = model.get_submodule(PATH)(x) - before
    update = 7.0 * adapter.delta(f"transformer.{PATH}").T
    assert (change - update).norm() < 0.02 * update.norm()  # a few roundings of 2^-8
    rack.activate({})
    assert model.get_submodule(PATH) is layer
    assert torch.equal(layer(x), before)


def test_fusing_leaves_branches_and_says_why(plain, quantised, forward):
    model, kind = quantised
    rack = Rack(model)
    rack.load("one", adapter_for(plain))
    rack.activate({"one": 0.7})
    branches = forward(model, dtype=torch.bfloat16)
    rack.fuse()
    assert torch.equal(forward(model, dtype=torch.bfloat16), branches)
    assert rack.state.num_fused == 0
    assert len(rack.state.branches) == 8
    assert all(kind in why and "round the sum away" in why for why in rack.state.branches.values())


def test_a_quantised_base_is_told_by_its_layers(plain, quantised):
    model, _ = quantised
    adapter = adapter_for(plain).with_provenance(**base_fingerprints(plain))
    rack = Rack(model)
    with pytest.raises(MismatchError, match=r"may have been trained on other weights.*strict_base"):
        rack.load("one", adapter, strict_base=True)
    rack.load("one", adapter)
    ((note,),) = (adapter.notes for adapter in rack.state.adapters)
    assert "nobody can tell" in note


# ---- training


def assert_near(actual, expected, *, rel):
    gap = torch.cat([(one - other).flatten() for one, other in zip(actual, expected, strict=True)])
    assert gap.norm() <= rel * torch.cat([one.flatten() for one in expected]).norm()


def test_gradients_flow_through_a_quantised_base(plain, quantised):
    """They are those of a model whose weights are the packed ones, as these show themselves to the columns of an identity."""
    model, _ = quantised
    other = copy.deepcopy(plain)
    for path, module in model.named_modules():
        if path.endswith(KINDS):
            linear = other.get_submodule(path)
            shown = module(torch.eye(linear.in_features, dtype=torch.bfloat16)) - linear.bias
            linear.weight = nn.Parameter(shown.T.contiguous())
    results, expected = figures(branched(model), torch.bfloat16), figures(branched(other), torch.bfloat16)
    assert all("after its base" in road for road in roads(model).values())
    assert len(results) == 17
    assert all(grad.norm() > 0 for grad in results)
    # What is shown is rounded to 8 digits, and LLM.int8() rounds inputs too, to 127 steps.
    assert_near(results[:1], expected[:1], rel=0.03)
    assert_near(results[1:], expected[1:], rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_int8_is_as_near_to_the_weights_as_torchaos(dtype):
    layer = nn.Linear(96, 48, bias=False)
    layer.weight = nn.Parameter(weight_of(dtype), requires_grad=False)
    w, form = layer.weight.data.clone(), FORMS["int8"]
    torchao = import_module("torchao.quantization")
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
    ours, theirs = form.unpack(form.pack(w), w.shape, dtype), layer.weight.dequantize()  # pyright: ignore[reportCallIssue]
    assert (ours - w).norm() <= 1.01 * (theirs - w).norm()
    step = w.abs().amax(dim=1, keepdim=True) / 127
    assert ((ours - theirs).abs() <= 1.1 * step + 2.0**-7 * w.abs()).all()


def test_nf4_is_what_bitsandbytes_makes_of_a_layer(plain):
    """Bit for bit the layer of QLoRA."""
    packed = copy.deepcopy(plain)
    by_bitsandbytes(packed, "Linear4bit", compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=False)
    layer, w = packed.get_submodule(PATH), plain.get_submodule(PATH).weight.data
    theirs = import_module("bitsandbytes").functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    form = FORMS["nf4"]
    assert torch.equal(form.unpack(form.pack(w), w.shape, w.dtype), theirs.to(w.dtype))
    assert sum(part.nbytes for part in form.pack(w)) == w.numel() * 4.5 / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_in_nf4_gives_the_same_bits_there_and_streamed(dtype):
    models = []
    for stream in (False, True):
        models.append(tiny_transformer().requires_grad_(False).to(dtype))
        told = store_base(models[-1], "nf4", stream=stream, device=torch.device("cpu"), copier=LateCopies())
        assert 0.05 < told.change < 0.12
    there, streamed = (branched(model) for model in models)
    assert all("after its base" not in road for road in roads(streamed).values())
    for _ in range(2):
        for one, other in zip(figures(streamed, dtype), figures(there, dtype), strict=True):
            assert torch.equal(one, other)


def test_a_base_in_nf4_can_be_rehearsed():
    model = tiny_transformer().requires_grad_(False)
    store_base(model, "nf4", stream=True, device=torch.device("cpu"))
    model = branched(model).train()
    assert len(rehearse(model, lambda: run(model), ways_of).blocks) == 2
