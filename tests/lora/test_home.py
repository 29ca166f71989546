"""Where pristine weights wait: chosen by what fits, once, and without any trace in the result."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from test_using import adapter_for

from reelora.errors import ConfigError, MismatchError
from reelora.lora import Rack
from reelora.lora.acting import Use
from reelora.lora.fused import FusedWeights
from reelora.lora.home import choose_home, free_bytes
from reelora.lora.rounding import noise_of
from reelora.lora.sites import sites_of

HOST, DEVICE = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30
LITTLE, MUCH = GIB, 100 * GIB


@pytest.fixture
def base(transformer, tmp_path):
    """A file with the model's weights."""
    save_file({name: tensor.contiguous() for name, tensor in transformer.state_dict().items()}, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize(
    ("on_device", "on_host", "has_file", "home"),
    [
        (MUCH, LITTLE, True, "kept"),
        (LITTLE, MUCH, True, "host"),
        (LITTLE, LITTLE, True, "file"),
        (LITTLE, LITTLE, False, "host"),
    ],
)
def test_weights_of_an_accelerator_wait_in_the_first_home_with_room(on_device, on_host, has_file, home):
    free = {DEVICE: on_device, HOST: on_host}
    assert choose_home({DEVICE: 3 * GIB}, has_file=has_file, free=free.__getitem__) == home


@pytest.mark.parametrize(
    ("on_host", "has_file", "home"), [(MUCH, True, "kept"), (LITTLE, True, "file"), (LITTLE, False, "kept")]
)
def test_weights_of_a_processor_wait_where_they_are_or_in_their_file(on_host, has_file, home):
    assert choose_home({HOST: 3 * GIB}, has_file=has_file, free=lambda device: on_host) == home


def test_as_much_again_as_is_needed_stays_free():
    assert choose_home({HOST: GIB}, has_file=True, free=lambda device: 2 * GIB) == "kept"
    assert choose_home({HOST: GIB}, has_file=True, free=lambda device: 2 * GIB - 1) == "file"


def test_the_free_memory_of_this_machine_is_a_number_of_bytes():
    assert 2**20 < free_bytes(HOST) < 2**50


@pytest.mark.parametrize(("free", "home"), [(MUCH, "kept"), (0, "file")])
def test_the_home_is_chosen_once_and_by_the_first_fuse(transformer, free, home):
    adapter, asked = adapter_for(transformer), []
    sites = sites_of({"transformer": transformer})
    pristine = {name: sites[name].weight.data.clone() for name in adapter.pairs}

    def free_then_full(device: torch.device) -> int:
        asked.append(device)
        return free if len(asked) == 1 else MUCH - free

    weights = FusedWeights(sites, home="auto", read=pristine.__getitem__, noise=noise_of("nearest", 0), free=free_then_full)
    weights.apply(())
    assert (weights.home, asked) == ("auto", [])
    for strength in (0.5, 1.0):
        weights.apply((Use("one", adapter.pairs, dict.fromkeys(adapter.pairs, strength)),))
        assert weights.home == home
    weights.apply(())
    assert all(torch.equal(sites[name].weight, pristine[name]) for name in pristine)
    assert asked == [HOST]


def test_the_state_tells_the_home(transformer, base):
    rack = Rack(transformer, base=base)
    rack.load("one", adapter_for(transformer))
    rack.activate({"one": 1.0})
    assert rack.state.home == "auto"
    rack.fuse()
    assert rack.state.home in ("kept", "file")
    assert f"pristine weights {rack.state.home}" in str(rack.state)


@pytest.mark.parametrize("home", ["auto", "kept", "host", "file"])
def test_wherever_pristine_weights_wait_results_are_the_same_and_the_bits_come_back(transformer, forward, base, home):
    before = {name: parameter.data.clone() for name, parameter in transformer.named_parameters()}
    adapter, twin = adapter_for(transformer), copy.deepcopy(transformer)
    rack = Rack(transformer, home=home, base=base if home == "file" else None)
    expected = Rack(twin, home="kept")
    for one in (rack, expected):
        one.load("one", adapter)
        one.fuse()
    for strength in (1.0, 0.5, 1.0, 0.5):
        rack.activate({"one": strength})
    expected.activate({"one": 0.5})
    assert torch.equal(forward(transformer), forward(twin))
    rack.restore()
    assert all(torch.equal(parameter, before[name]) for name, parameter in transformer.named_parameters())


def test_a_file_that_does_not_hold_the_models_own_weights_is_refused(transformer, base, forward):
    transformer.transformer_blocks[1].attn1.to_v.weight.data[0, 0] += 1
    before = forward(transformer)
    rack = Rack(transformer, home="file", base=base)
    rack.load("one", adapter_for(transformer))
    rack.fuse()
    with pytest.raises(MismatchError, match=r"blocks\.1\.attn1\.to_v has other values in base="):
        rack.activate({"one": 1.0})
    assert torch.equal(forward(transformer), before)


@pytest.mark.parametrize(("home", "given", "message"), [("file", False, "base="), ("kept", True, "leave base out")])
def test_a_home_and_a_base_that_do_not_go_together_are_refused(transformer, base, home, given, message):
    with pytest.raises(ConfigError, match=message):
        Rack(transformer, home=home, base=base if given else None)
