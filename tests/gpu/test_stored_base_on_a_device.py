"""A base that is packed or waits in pinned memory, on a device of CUDA: nothing is read too early, nothing overwritten."""

import pytest
import torch
from tiny_models import NUM_TEXT_TOKENS, build_transformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reelora.adapters import LoraSpec
from reelora.lora import StoredBase, attach, base_bytes, store_base
from reelora.lora.ring import Beside, Ring
from reelora.lora.storage import FORMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no device of CUDA"),
]

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
DEPTH = 6
LONG = 20_000_000
"""Cycles of the device: about ten milliseconds."""


class Slow(Beside):
    """Begins every copy late, so that who does not wait for it reads what was there before."""

    def start(self, buffer, source):
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(LONG)
        return super().start(buffer, source)


def model_of(storage=None, *, stream=False, copier=None, width=16):
    """On the device, with branches that have an effect; and how its base is stored."""
    torch.manual_seed(0)
    size = {"attention_head_dim": width, "num_attention_heads": 4, "sample_width": 8, "sample_height": 8}
    model = build_transformer("5B", num_layers=DEPTH, **size).requires_grad_(False)
    told: StoredBase | None = None
    if storage is None:
        model.to(CUDA)
    else:
        told = store_base(model, storage, stream=stream, device=CUDA, copier=copier)
    attach(model, LoraSpec(rank=4, alpha=2))
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            parameter.data = nn.init.normal_(torch.empty(parameter.shape), std=0.1, generator=draw).to(CUDA)
    return model.train(), told


def step(model):
    """What the model says of fixed inputs, and the gradients of its branches; the attention sums in a fixed order."""
    draw = torch.Generator().manual_seed(1)
    video, text = torch.randn(2, 3, 4, 8, 8, generator=draw), torch.randn(2, NUM_TEXT_TOKENS, 16, generator=draw)
    rotary = torch.randn(2, 3 * 16, model.config.attention_head_dim, generator=draw).to(CUDA)
    model.zero_grad()
    told = {"encoder_hidden_states": text.to(CUDA), "timestep": torch.tensor([5, 900], device=CUDA)}
    with sdpa_kernel(SDPBackend.MATH):
        result = model(hidden_states=video.to(CUDA), image_rotary_emb=(rotary[0], rotary[1]), **told).sample
        result.square().mean().backward()
    return [result.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("is_checkpointing", [False, True])
@pytest.mark.parametrize("storage", ["precision", "fp8", "int8"])
def test_a_streamed_base_gives_the_same_bits_however_late_its_copies_come(storage, is_checkpointing):
    there, _ = model_of(None if storage == "precision" else storage)
    expected = step(there)
    assert all(torch.equal(one, other) for one, other in zip(step(there), expected, strict=True))
    streamed, told = model_of(storage, stream=True, copier=Slow(CUDA))
    assert told is not None
    assert told.ring is not None
    if is_checkpointing:
        streamed.enable_gradient_checkpointing()
    for _ in range(3):
        actual = step(streamed)
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
    assert told.ring.num_copies > 3 * (DEPTH - 2)


def test_a_buffer_is_not_overwritten_while_something_queued_still_reads_it():
    blocks = [torch.full((1 << 20,), index, dtype=torch.uint8).pin_memory() for index in range(5)]
    ring, read = Ring(blocks, CUDA), []
    for index in [0, 1, 2, 3, 4, 3, 2, 1, 0]:
        buffer = ring.fetch(index)
        torch.cuda._sleep(LONG)
        read.append((index, buffer.clone()))
    assert all((there == index).all() for index, there in read)


def test_blocks_wait_in_pinned_memory_and_stay_as_they_are():
    model, told = model_of("precision", stream=True)
    assert told is not None
    assert told.ring is not None
    blocks = told.ring._blocks
    before = [block.clone() for block in blocks]
    step(model)
    torch.cuda.synchronize()
    assert all(block.is_pinned() for block in blocks)
    assert all(torch.equal(block, then) for block, then in zip(blocks, before, strict=True))


def test_copies_run_beside_what_the_device_computes():
    """The device sleeps, and the copy that was asked for meanwhile is there before it wakes."""
    block = torch.ones(1 << 20, dtype=torch.uint8).pin_memory()
    copier, buffer = Beside(CUDA), torch.zeros(1 << 20, dtype=torch.uint8, device=CUDA)
    torch.cuda.synchronize()
    ticket = copier.start(buffer, block)
    torch.cuda._sleep(50 * LONG)
    assert isinstance(ticket, torch.cuda.Event)
    ticket.synchronize()
    assert not torch.cuda.current_stream(CUDA).query()
    torch.cuda.synchronize()


@pytest.mark.parametrize(("storage", "stream"), [("precision", True), ("fp8", False), ("int8", True)])
def test_the_base_takes_on_the_device_what_is_said(storage, stream):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(CUDA)
    model, told = model_of(storage, stream=stream, width=64)
    assert told is not None
    branches = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    taken = torch.cuda.memory_allocated(CUDA) - before
    assert taken - branches == pytest.approx(base_bytes(model), rel=0.05)  # torch rounds each tensor up to 512 bytes
    assert told.device_bytes < 0.55 * told.precision_bytes


@pytest.mark.parametrize("storage", ["fp8", "int8"])
def test_packing_gives_the_same_bytes_on_every_device(storage):
    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 64).unsqueeze(1)
    form = FORMS[storage]
    for dtype in (torch.float32, torch.bfloat16):
        here, there = form.pack(w.to(dtype)), form.pack(w.to(CUDA, dtype))
        assert all(
            torch.equal(one.view(torch.uint8), other.cpu().view(torch.uint8)) for one, other in zip(here, there, strict=True)
        )
        backs = [form.unpack(parts, w.shape, dtype).cpu() for parts in (here, there)]
        assert torch.equal(*backs)
