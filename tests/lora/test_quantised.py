"""The rack on bases that bitsandbytes or torchao have quantised: adapters act as branches, and the packed weights stay.

Both work on a processor, but diffusers imports what is installed, slowly and with warnings: they have an extra of their own.
"""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from sides import PATH
from test_using import adapter_for
from torch import nn

from reelora.errors import MismatchError
from reelora.lora import Rack, base_fingerprints

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
