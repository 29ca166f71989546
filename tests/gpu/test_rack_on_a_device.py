"""The rack where weights come to an accelerator for their forward and go away again."""

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.hooks.group_offloading import apply_group_offloading
from tiny_models import build_transformer
from updates import random_adapter

from reelora.lora import Rack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator"),
]

CPU = torch.device("cpu")


def by_group(kind: str, *, use_stream: bool = False, to_disk: bool = False) -> Any:
    def enable(model: Any, device: torch.device, folder: Any) -> None:
        path = str(folder) if to_disk else None
        settings = {"num_blocks_per_group": 1, "use_stream": use_stream, "offload_to_disk_path": path}
        apply_group_offloading(model, device, CPU, kind, **settings)

    return enable


MODES = {
    "model": (lambda model, device, _: cpu_offload_with_hook(model, device), ""),
    "sequential": (lambda model, device, _: cpu_offload(model, execution_device=device), "sequential offload"),
    "blocks": (by_group("block_level"), ""),
    "leaves": (by_group("leaf_level"), ""),
    "blocks with streams": (by_group("block_level", use_stream=True), "with streams"),
    "leaves with streams": (by_group("leaf_level", use_stream=True), "with streams"),
    "blocks on disk": (by_group("block_level", to_disk=True), "to disk"),
    "leaves on disk with streams": (by_group("leaf_level", use_stream=True, to_disk=True), "to disk"),
}
"""How weights are offloaded, and why a rack does not fuse them; empty where it does."""


@pytest.fixture
def device():
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return torch.device(found.type, 0)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return build_transformer("2B", sample_width=8, sample_height=8).eval().requires_grad_(False)


@torch.no_grad()
def run(model: Any, device: torch.device) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    video, text = torch.randn(2, 3, 4, 8, 8, generator=draw), torch.randn(2, 8, 16, generator=draw)
    steps = torch.tensor([5, 900], device=device)
    return model(hidden_states=video.to(device), encoder_hidden_states=text.to(device), timestep=steps).sample.cpu()


def rack_with(model: Any) -> Rack:
    rack = Rack(model)
    rack.load("one", random_adapter(1, out=32, inp=32, scale=0.05))
    return rack


@pytest.mark.parametrize(("enable", "why"), MODES.values(), ids=list(MODES))
def test_adapters_act_the_same_and_fuse_exactly_or_stay_branches(transformer, device, tmp_path, enable, why):
    plain = copy.deepcopy(transformer).to(device)
    base = run(plain, device)
    enable(transformer, device, tmp_path)
    rack, expected = rack_with(transformer), rack_with(plain)
    for one in (rack, expected):
        one.activate({"one": 0.7})
    for _ in range(3):  # with streams the first forward only finds out the order
        assert torch.equal(run(transformer, device), run(plain, device))
    branches = run(plain, device)
    rack.fuse()
    for _ in range(3):
        torch.testing.assert_close(run(transformer, device), branches, rtol=0, atol=1e-4)
    assert bool(rack.state.num_fused) == (not why)
    assert all(why in reason for reason in rack.state.branches.values())
    rack.restore()
    rack.activate({})
    for _ in range(2):
        assert torch.equal(run(transformer, device), base)


def test_a_model_that_is_moved_takes_its_branches_along(transformer, device):
    rack = rack_with(transformer)
    rack.activate({"one": 0.7})
    on_host = run(transformer, CPU)
    transformer.to(device)
    torch.testing.assert_close(run(transformer, device), on_host, rtol=0, atol=1e-3)
    moved = run(transformer, device)
    rack.activate({"one": 0.7})
    assert torch.equal(run(transformer, device), moved)
    transformer.to(CPU)
    assert torch.equal(run(transformer, CPU), on_host)


def test_what_is_prefetched_lies_on_the_device_before_it_acts(transformer, device):
    transformer.to(device)
    rack = rack_with(transformer)
    before = torch.accelerator.memory_allocated(device)
    rack.prefetch({"one": 1.0})
    prefetched = torch.accelerator.memory_allocated(device)
    assert prefetched - before >= rack.state.stack_bytes > 0
    rack.activate({"one": 0.5})
    assert torch.accelerator.memory_allocated(device) == prefetched


@pytest.mark.parametrize("home", ["kept", "host"])
def test_pristine_weights_wait_where_the_home_says(transformer, device, home):
    transformer.to(device)
    before = {name: parameter.clone() for name, parameter in transformer.named_parameters()}
    rack = Rack(transformer, home=home)
    rack.load("one", random_adapter(1, out=32, inp=32))
    run(transformer, device)  # the libraries take their workspace now
    held = torch.accelerator.memory_allocated(device)
    rack.fuse()
    rack.activate({"one": 1.0})
    grown = torch.accelerator.memory_allocated(device) - held
    assert (grown >= rack.state.buffer_bytes) == (home == "kept")
    rack.restore()
    rack.activate({})
    assert all(torch.equal(parameter, before[name]) for name, parameter in transformer.named_parameters())
