"""An adapter knows its base: other layers are refused, other values are said."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build_transformer, build_unet

from reelora.adapters import LoraSpec, read_adapter, write_adapter
from reelora.errors import MismatchError
from reelora.lora import attach, base_fingerprints, base_notes, collect, detach
from reelora.tensorio import open_tensors, value_fingerprint

SPEC = LoraSpec(rank=4, alpha=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_transformer()


@pytest.fixture
def adapter(model):
    bases = base_fingerprints(model)
    attach(model, SPEC)
    adapter = collect(model, provenance={**bases, "base_model": "tiny"})
    detach(model)
    return adapter


def test_its_own_base_gives_no_note(model, adapter, tmp_path):
    write_adapter(adapter, tmp_path / "a.safetensors")
    assert base_notes(read_adapter(tmp_path / "a.safetensors"), of(model), name="a", strict_base=True) == []


def test_branches_do_not_change_the_fingerprints(model):
    before = base_fingerprints(model)
    attach(model, SPEC)
    assert base_fingerprints(model) == before


def test_the_precision_of_loading_does_not_change_them(model):
    assert base_fingerprints(model) == base_fingerprints(build_like(model).bfloat16())


def test_shards_and_order_do_not_change_them(model, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(state, reverse=True)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, tmp_path / f"{number}.safetensors")
    shards = load_file(tmp_path / "0.safetensors") | load_file(tmp_path / "1.safetensors")
    assert value_fingerprint(shards) == value_fingerprint(state) == base_fingerprints(model)["base_values"]
    save_file(state, tmp_path / "whole.safetensors")
    assert value_fingerprint(open_tensors(tmp_path / "whole.safetensors")) == value_fingerprint(state)


def test_another_shape_is_refused_and_says_which_base_it_was(adapter):
    with pytest.raises(MismatchError, match=r"(?s)style was trained on a base with other layers.*tiny"):
        base_notes(adapter, of(build_transformer(num_layers=3)), name="style")
    with pytest.raises(MismatchError, match="other layers"):
        base_notes(adapter, of(build_unet()), name="style")


def test_other_values_are_a_note_or_with_strict_base_an_error(model, adapter):
    tuned = build_like(model)
    tuned.get_submodule("transformer_blocks.0.attn1.to_q").weight.data += 0.01
    (note,) = base_notes(adapter, of(tuned), name="style")
    assert "style was trained on other weights" in note
    with pytest.raises(MismatchError, match="strict_base"):
        base_notes(adapter, of(tuned), name="style", strict_base=True)


def test_an_adapter_that_tells_no_base_fits_any(model, adapter):
    silent = adapter.with_provenance()
    silent = type(silent)(pairs=silent.pairs, spec=silent.spec, layout="memory", scale_source="a test")
    assert base_notes(silent, of(model), name="style", strict_base=True) == []


def of(model):
    """Its fingerprints, when they are asked for."""
    return lambda: base_fingerprints(model)


def build_like(model):
    twin = build_transformer()
    twin.load_state_dict(model.state_dict())
    return twin
