"""A base in less memory: packed weights are those weights, streamed ones are the same bits, and nobody keeps either."""

import copy
import math

import pytest
import torch
from late_copies import LateCopies
from test_memory import Allocations
from tiny import run, tiny_transformer, tiny_unet
from tiny_models import build_transformer
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from reelora.adapters import LoraSpec
from reelora.errors import ConfigError, MismatchError
from reelora.lora import (
    TrainableLinear,
    attach,
    base_bytes,
    base_fingerprints,
    check_storage,
    collect,
    detach,
    load_into,
    roads,
    store_base,
    stored_base_bytes,
)
from reelora.lora.frozen import FrozenLinear
from reelora.lora.storage import FORMS
from reelora.lora.together import TOGETHER

CPU = torch.device("cpu")
SPEC = LoraSpec(rank=4, alpha=2)
ROUNDED = ["fp8", "int8"]
DTYPES = [torch.float32, torch.bfloat16]


def weight(dtype, *, std=0.02, shape=(48, 96)):
    """Rows of very different sizes."""
    draw = torch.Generator().manual_seed(5)
    rows = torch.logspace(-2, 1, shape[0]).unsqueeze(1)
    return (torch.randn(shape, generator=draw) * std * rows).to(dtype)


def tiny_and_deep():
    """More blocks than there is room for."""
    torch.manual_seed(0)
    return build_transformer("2B", sample_width=8, sample_height=8, num_layers=4).eval()


def again(storage, w):
    form = FORMS[storage]
    return form.unpack(form.pack(w), w.shape, w.dtype)


def stored(make, storage, *, stream=False, dtype=torch.float32):
    model = make().requires_grad_(False).to(dtype)
    return model, store_base(model, storage, stream=stream, device=CPU, copier=LateCopies())


def branched(model):
    """With branches that have an effect."""
    attach(model, SPEC)
    draw = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, TrainableLinear):
            nn.init.normal_(module.lora_b, std=0.1, generator=draw)
    return model


def figures(model, dtype=torch.float32):
    """What the model says and the gradients of its branches."""
    model.zero_grad()
    result = run(model, dtype=dtype)
    result.float().square().mean().backward()
    return [result.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 1
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


# ---- forms


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_rounds_each_number_to_four_digits(dtype):
    w = weight(dtype)
    row = w.abs().amax(dim=1, keepdim=True)
    # Half of the last of three binary digits behind the point; below 2^-14 of a row's largest, e4m3 has fewer.
    assert ((again("fp8", w) - w).abs() <= 2.0**-4 * w.abs() + 2.0**-17 * row).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_rounds_each_number_to_a_127th_of_the_largest_of_its_row(dtype):
    w = weight(dtype)
    step = w.abs().amax(dim=1, keepdim=True).float() / 127
    slack = 1.02 if dtype == torch.bfloat16 else 1.0001  # the scale, and the product with it, are rounded to 8 digits
    assert ((again("int8", w).float() - w.float()).abs() <= slack * step / 2 + 2.0**-8 * w.abs() * (slack > 1.01)).all()


@pytest.mark.parametrize("power", [-12, 9])
def test_fp8_does_not_depend_on_how_large_weights_are(power):
    """A plain cast does: what is small loses its digits, what is large becomes NaN."""
    w = weight(torch.bfloat16)
    assert torch.equal(again("fp8", w * 2.0**power), again("fp8", w) * 2.0**power)


def test_what_fp8_gives_back_it_keeps_exactly():
    once = again("fp8", weight(torch.bfloat16))
    assert torch.equal(again("fp8", once), once)


@pytest.mark.parametrize("storage", ROUNDED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_and_extremes_stay_finite(storage, dtype):
    w = torch.zeros(6, 8, dtype=dtype)
    w[1, 0], w[2], w[3, 1], w[4] = 448.0, 1e-30, 1e30, -500.0
    w[5] = torch.tensor([449.0, 464.0, 465.0, 479.0, -480.0, 1.0, 2.0, 3.0])
    back = again(storage, w)
    assert back.isfinite().all()
    assert (back[w == 0] == 0).all()
    assert ((back - w).abs() <= 2.0**-4 * w.abs().amax(dim=1, keepdim=True)).all()


@pytest.mark.parametrize("storage", ROUNDED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_takes_one_byte(storage, dtype):
    w = weight(dtype)
    numbers, scale = FORMS[storage].pack(w)
    assert (numbers.nbytes, scale.shape, scale.dtype) == (w.numel(), (48, 1), dtype)


def test_a_form_that_needs_a_package_names_it(monkeypatch):
    monkeypatch.setattr("reelora.lora.storage.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"base\.storage nf4 .*`pip install bitsandbytes`"):
        check_storage("nf4")
    check_storage("fp8")


# ---- a model whose base is stored


@pytest.mark.parametrize("storage", ROUNDED)
@pytest.mark.parametrize(
    ("make", "dtype"), [(tiny_transformer, torch.float32), (tiny_transformer, torch.bfloat16), (tiny_unet, torch.float32)]
)
def test_a_packed_base_is_one_whose_weights_are_what_comes_back_bit_for_bit(make, dtype, storage):
    model, _ = stored(make, storage, dtype=dtype)
    other = make().requires_grad_(False).to(dtype)
    for path, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            linear = other.get_submodule(path)
            linear.weight = nn.Parameter(again(storage, linear.weight.data), requires_grad=False)
    assert_same(figures(branched(model), dtype), figures(branched(other), dtype))


@pytest.mark.parametrize("storage", ["precision", *ROUNDED])
@pytest.mark.parametrize("make", [tiny_and_deep, tiny_unet])
def test_a_streamed_base_gives_the_same_bits_as_one_that_is_there(make, storage):
    """Its copies come at the last moment, and what is not there yet is NaN."""
    there = make().requires_grad_(False) if storage == "precision" else stored(make, storage)[0]
    streamed, _ = stored(make, storage, stream=True)
    there, streamed = branched(there), branched(streamed)
    for _ in range(3):
        assert_same(figures(streamed), figures(there))


def test_branches_run_with_a_stored_base_as_with_any_other():
    model, _ = stored(tiny_transformer, "fp8", stream=True)
    attach(model, SPEC)
    assert list(roads(model).values()).count(TOGETHER) == 6
    assert all("after its base" not in road for road in roads(model).values())


def test_autograd_keeps_no_weight():
    model, _ = stored(tiny_transformer, "fp8")
    branched(model)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        run(model)
    shapes = {tuple(module.weight.shape) for module in model.modules() if isinstance(module, FrozenLinear)}
    assert kept
    assert shapes.isdisjoint(kept)


def test_a_frozen_layer_alone_does_what_a_linear_does_also_under_autocast():
    linear = nn.Linear(24, 40).requires_grad_(False)
    layer = FrozenLinear(linear, lambda: linear.weight.data, device=CPU)
    x = torch.randn(2, 5, 24, requires_grad=True)
    for is_cast in (False, True):
        grads = []
        for one in (linear, layer):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
                y = one(x)
            (grad,) = torch.autograd.grad(y.float().square().sum(), x)
            grads.append((y.detach(), grad))
        assert grads[0][0].dtype == grads[1][0].dtype
        assert torch.equal(grads[0][0], grads[1][0])
        assert (grads[0][1] - grads[1][1]).norm() <= (0.02 if is_cast else 0) * grads[0][1].norm()


def test_an_adapter_trained_on_a_streamed_base_is_the_same_on_a_plain_one():
    model, _ = stored(tiny_and_deep, "precision", stream=True)
    expected = run(branched(model))
    plain = tiny_and_deep()
    attach(plain, SPEC)
    load_into(plain, collect(model))
    assert torch.equal(run(plain), expected)


def test_detaching_leaves_the_stored_base():
    model, _ = stored(tiny_transformer, "int8")
    layers, before = {id(m) for m in model.modules()}, run(model)
    branched(model)
    detach(model)
    assert {id(m) for m in model.modules()} == layers
    assert torch.equal(run(model), before)


def test_only_plain_linears_in_blocks_are_stored():
    model = tiny_transformer()
    hooked = model.transformer_blocks[1].ff.net[2]
    hooked.register_forward_pre_hook(lambda *_: None)
    outside, before = model.proj_out.weight, run(model)
    told = store_base(model, "precision", stream=True, device=CPU)
    kinds = {path: type(module) for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kinds["transformer_blocks.1.ff.net.2"] is nn.Linear
    assert all(path.startswith("transformer_blocks") for path, kind in kinds.items() if kind is FrozenLinear)
    assert (told.num_layers, told.num_blocks) == (15, 2)
    assert model.proj_out.weight is outside
    assert torch.equal(run(model), before)


# ---- its memory


def nbytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def test_what_a_base_takes_on_the_device_is_told():
    plain = tiny_transformer().requires_grad_(False).bfloat16()
    layers = [m.weight for block in plain.transformer_blocks for m in block.modules() if isinstance(m, nn.Linear)]
    whole = nbytes([*plain.parameters(), *plain.buffers()])
    rest, numbers, rows = whole - nbytes(layers), sum(w.numel() for w in layers), sum(len(w) for w in layers)
    assert base_bytes(plain) == whole
    packed, told = stored(tiny_transformer, "fp8", dtype=torch.bfloat16)
    assert base_bytes(packed) == rest + numbers + 2 * rows
    assert (told.precision_bytes, told.packed_bytes, told.ring) == (nbytes(layers), numbers + 2 * rows, None)
    streamed, told = stored(tiny_transformer, "precision", stream=True, dtype=torch.bfloat16)
    assert told.ring is not None
    assert base_bytes(streamed) == rest + told.ring.nbytes
    assert told.ring.nbytes == 2 * nbytes(layers[:8])  # room for two blocks; here these are all
    attach(streamed, SPEC)
    assert base_bytes(streamed) == rest + told.ring.nbytes


@pytest.mark.parametrize("storage", ["precision", *ROUNDED])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_base_will_take_is_known_beforehand(storage, stream, dtype):
    plain = tiny_and_deep().requires_grad_(False).to(dtype)
    attach(plain, SPEC)
    model, _ = stored(tiny_and_deep, storage, stream=stream, dtype=dtype)
    largest = max(block.ff.net[2].weight.nbytes for block in plain.transformer_blocks)
    expected = base_bytes(model) + (0 if storage == "precision" else largest)
    assert expected <= stored_base_bytes(plain, storage, stream=stream) <= expected + 2 * 64  # beginnings are aligned


def test_of_a_streamed_model_two_blocks_are_on_the_device():
    _, told = stored(tiny_and_deep, "precision", stream=True)
    assert told.ring is not None
    assert (told.num_blocks, told.device_bytes) == (4, told.packed_bytes // 2)


class Peak(Allocations):
    """The most that some tensors, as long as they live, and all that is made take together."""

    def __init__(self, tensors):
        super().__init__()
        self._were = {StorageWeakRef(t.untyped_storage()): t.nbytes for t in tensors}
        self.peak = 0

    @property
    def left_bytes(self):
        """Of those tensors."""
        return sum(size for held, size in self._were.items() if not held.expired())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.peak = max(self.peak, self.left_bytes + self.alive_bytes)
        return out


@pytest.mark.parametrize(("storage", "stream"), [("precision", True), ("fp8", False), ("fp8", True)])
def test_a_base_is_converted_block_by_block_and_nothing_else_is_left_of_it(storage, stream):
    torch.manual_seed(0)
    model = build_transformer("2B", num_layers=12).requires_grad_(False)
    linears = [m for m in model.transformer_blocks.modules() if isinstance(m, nn.Linear)]
    weights = [m.weight.data for m in linears]
    whole, block, peak = nbytes(weights), nbytes(weights[:8]), Peak(weights)
    del weights, linears
    with peak:
        told = store_base(model, storage, stream=stream, device=CPU)
    assert peak.peak <= 1.01 * whole + 3 * block  # one on its way, or two buffers once all are there
    assert peak.left_bytes == 0
    ring = told.ring.nbytes if told.ring else 0
    assert told.packed_bytes + ring <= peak.alive_bytes <= 1.01 * (told.packed_bytes + ring)


def test_placeholders_take_no_memory_and_cannot_be_taken_for_weights():
    model, _ = stored(tiny_transformer, "fp8")
    plain = tiny_transformer()
    layer = model.transformer_blocks[0].ff.net[2]
    assert layer.weight.shape == plain.transformer_blocks[0].ff.net[2].weight.shape
    assert layer.weight.untyped_storage().nbytes() == 4
    assert layer.weight.isnan().all()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    told, expected = base_fingerprints(model), base_fingerprints(plain)
    assert told == {key: value for key, value in expected.items() if key in told}
    assert len(told) < len(expected)  # of its values nothing is said


def test_a_stored_model_stays_where_it_is():
    model, _ = stored(tiny_transformer, "fp8")
    before = run(model)
    model.to(CPU)
    with pytest.raises(MismatchError, match=r"packed for cpu in torch\.float32 and cannot go to cpu in torch\.bfloat16"):
        model.transformer_blocks.to(torch.bfloat16)
    with pytest.raises(MismatchError, match="cannot go to meta"):
        model.transformer_blocks.to("meta")
    assert torch.equal(run(model), before)


# ---- what it says and refuses


def test_what_was_done_is_said_with_the_change_of_the_weights():
    model = tiny_transformer()
    w = model.transformer_blocks[0].attn1.to_q.weight.data.clone()
    _, told = stored(tiny_transformer, "fp8", stream=True)
    said = "\n".join(text for _, text in told.rows())
    assert "16 layers of 2 blocks" in said
    assert f"fp8 changes weights by {told.change:.1%}; slower" in said
    assert told.change == pytest.approx(float((again("fp8", w) - w).norm() / w.norm()), rel=0.2)
    assert "saves nothing" in said  # on a processor
    _, told = stored(tiny_transformer, "precision", stream=True)
    assert "changes weights" not in "\n".join(text for _, text in told.rows())


def test_a_base_is_stored_before_branches_come_and_once():
    model = tiny_transformer()
    attach(model, SPEC)
    with pytest.raises(MismatchError, match="has 8 branches already"):
        store_base(model, "fp8", stream=False, device=CPU)
    detach(model)
    store_base(model, "fp8", stream=False, device=CPU)
    with pytest.raises(MismatchError, match="stored already"):
        store_base(model, "int8", stream=False, device=CPU)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(MismatchError, match="no plain Linears in repeated blocks"):
        store_base(nn.Sequential(nn.Linear(4, 4)), "fp8", stream=False, device=CPU)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_before_anything_changes(bad):
    model = tiny_transformer().requires_grad_(False)
    model.transformer_blocks[1].attn1.to_k.weight[0, 0] = bad
    before = copy.deepcopy(list(model.modules()))
    with pytest.raises(ConfigError, match=r"1 weights .*transformer_blocks\.1\.attn1\.to_k.*fp8"):
        store_base(model, "fp8", stream=True, device=CPU)
    assert [type(m) for m in model.modules()] == [type(m) for m in before]
