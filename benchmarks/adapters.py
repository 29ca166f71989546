"""Adapters on a live model: load, activate, fuse, restore, and what they cost in a forward.

Real widths and depths with random weights, rank 128, bfloat16; the peer is diffusers 0.42.1 with PEFT 0.21.2 on a model of its
own. CogVideoX-5B is as deep as fits the memory of a small machine twice over. Both sides have to give the same output.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from peft import LoraConfig
from torch import Tensor

from reelora import Adapter, LoraSpec, Pair, Rack, read_adapter, write_adapter
from reelora.lora.kernel import fused_rows, sample_rows

from .models import build_transformer
from .side_by_side import Row, seconds_of_both

__all__ = ["run"]

DEPTHS = {"2B": 30, "5B": 16}
RANK, ALPHA = 128, 64.0
NUM_REGISTERED = 50
NUM_BLOCKS_FORWARD, NUM_FRAMES = 4, 2


def run() -> Iterator[Row]:
    """Everything that a live model does with adapters."""
    with tempfile.TemporaryDirectory() as folder:
        for width, depth in DEPTHS.items():
            yield from _life(width, depth, Path(folder))
    yield from _forwards()


def _life(width: str, depth: int, folder: Path) -> Iterator[Row]:
    ours, theirs = (build_transformer(width, num_layers=depth) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    files = [_write(ours, folder / f"{width}-{number}.safetensors", seed=number) for number in range(2)]
    rack = Rack(ours)
    label = f"{width} width, {depth} blocks"
    yield from _loading(rack, theirs, files[0], label)
    rack.load("a", files[0])
    rack.load("b", files[1])
    for name, path in zip("ab", files, strict=True):
        theirs.load_lora_adapter(path, prefix="transformer", adapter_name=name, low_cpu_mem_usage=True)
    yield from _switching(rack, theirs, label)
    yield from _fusing(rack, ours, theirs, label, read_adapter(files[0]))


def _loading(rack: Rack, theirs: CogVideoXTransformer3DModel, path: Path, label: str) -> Iterator[Row]:
    def load() -> None:
        rack.load("x", path)
        rack.unload("x")

    def peer(*, low_cpu_mem_usage: bool) -> None:
        theirs.load_lora_adapter(path, prefix="transformer", adapter_name="x", low_cpu_mem_usage=low_cpu_mem_usage)
        theirs.delete_adapters("x")

    yield seconds_of_both(f"load and unload a file, {label} (low_cpu_mem_usage)", load, lambda: peer(low_cpu_mem_usage=True))
    yield seconds_of_both(f"load and unload a file, {label} (default)", load, lambda: peer(low_cpu_mem_usage=False))


def _switching(rack: Rack, theirs: CogVideoXTransformer3DModel, label: str) -> Iterator[Row]:
    yield _alternate(f"activate the other of 2, {label}", rack, theirs)
    yield seconds_of_both(
        f"change a strength, {label}",
        _in_turn(lambda: rack.activate({"a": 0.5}), lambda: rack.activate({"a": 0.7})),
        _in_turn(lambda: theirs.set_adapters("a", 0.5), lambda: theirs.set_adapters("a", 0.7)),
        repeats=20,
    )
    if label.startswith("2B"):
        adapter = _adapter(theirs, seed=3, rank=1)
        for number in range(NUM_REGISTERED - 2):
            rack.load(f"more {number}", adapter)
            theirs.add_adapter(_config(1), f"more{number}")
        yield _alternate(f"activate the other of {NUM_REGISTERED}, {label}", rack, theirs)
        for number in range(NUM_REGISTERED - 2):
            rack.unload(f"more {number}")
            theirs.delete_adapters(f"more{number}")


def _alternate(what: str, rack: Rack, theirs: CogVideoXTransformer3DModel) -> Row:
    return seconds_of_both(
        what,
        _in_turn(lambda: rack.activate({"a": 1.0}), lambda: rack.activate({"b": 1.0})),
        _in_turn(lambda: theirs.set_adapters("a", 1.0), lambda: theirs.set_adapters("b", 1.0)),
        repeats=20,
    )


def _fusing(
    rack: Rack, ours: CogVideoXTransformer3DModel, theirs: CogVideoXTransformer3DModel, label: str, adapter: Adapter
) -> Iterator[Row]:
    pristine = {name: parameter.clone() for name, parameter in ours.named_parameters() if ".attn1.to_" in name}
    rack.activate({"a": 1.0})
    theirs.set_adapters("a", 1.0)

    def unfuse() -> None:
        theirs.unfuse_lora()

    yield _once(f"first fuse, {label}", rack.fuse, theirs.fuse_lora)
    yield _misrounded(ours, theirs, pristine, adapter, label)
    yield _once(f"restore, {label}", rack.restore, unfuse)
    assert all(torch.equal(parameter, pristine[name]) for name, parameter in ours.named_parameters() if name in pristine)

    def again(strength: float) -> tuple[Callable[[], None], Callable[[], None]]:
        def peer() -> None:
            theirs.set_adapters("a", strength)
            theirs.fuse_lora()

        return lambda: rack.activate({"a": strength}), peer

    rack.fuse()
    theirs.fuse_lora()
    rows = []
    for strength in (0.5, 0.7, 0.9):
        theirs.unfuse_lora()
        rows.append(_once("", *again(strength)))
    middle = sorted(rows, key=lambda row: row.ratio)[1]
    yield Row(what=f"fuse again with another strength, {label}", unit="s", ours=middle.ours, theirs=middle.theirs)
    yield seconds_of_both(
        f"fuse again, beside bare products (theirs), {label}",
        _in_turn(lambda: rack.activate({"a": 0.5}), lambda: rack.activate({"a": 0.7})),
        _bare_products(ours, adapter),
    )

    def switch(name: str) -> None:
        theirs.unfuse_lora()
        theirs.set_adapters(name, 1.0)
        theirs.fuse_lora()

    yield seconds_of_both(
        f"switch fused adapters, {label}",
        _in_turn(lambda: rack.activate({"a": 1.0}), lambda: rack.activate({"b": 1.0})),
        _in_turn(lambda: switch("a"), lambda: switch("b")),
        repeats=3,
    )


def _misrounded(
    ours: CogVideoXTransformer3DModel,
    theirs: CogVideoXTransformer3DModel,
    pristine: dict[str, Tensor],
    adapter: Adapter,
    label: str,
) -> Row:
    """Share of fused weights that are not the float64 sum rounded once."""
    wrong = {"ours": 0, "theirs": 0}
    total = 0
    for name, pair in list(adapter.pairs.items())[:8]:
        path = name.partition(".")[2]
        weight = pristine[f"{path}.weight"]
        rows = sample_rows(weight)
        exact = fused_rows(weight, [(pair, 1.0)], rows).to(weight.dtype)
        total += exact.numel()
        wrong["ours"] += int((ours.get_parameter(f"{path}.weight")[rows] != exact).sum())
        wrong["theirs"] += int((theirs.get_parameter(f"{path}.base_layer.weight")[rows] != exact).sum())
    return Row(
        what=f"misrounded weights, {label}", unit="", ours=max(wrong["ours"], 0.5) / total, theirs=wrong["theirs"] / total
    )


def _bare_products(model: CogVideoXTransformer3DModel, adapter: Adapter) -> Callable[[], None]:
    work = [(model.get_parameter(f"{name.partition('.')[2]}.weight"), pair) for name, pair in adapter.pairs.items()]
    out = [torch.empty_like(weight) for weight, _ in work]

    def multiply() -> None:
        for (weight, pair), target in zip(work, out, strict=True):
            torch.addmm(weight, pair.b, pair.a, alpha=0.5, out=target)

    multiply()
    return multiply


def _forwards() -> Iterator[Row]:
    """Forwards with branches, at the width of 2B, and fused."""
    ours, theirs = (build_transformer("2B", num_layers=NUM_BLOCKS_FORWARD) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    rack, names = Rack(ours), [f"a{number}" for number in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            path = _write(ours, Path(folder) / f"{name}.safetensors", seed=number)
            rack.load(name, path)
            theirs.load_lora_adapter(path, prefix="transformer", adapter_name=name, low_cpu_mem_usage=True)
        inputs = _inputs()
        for count in (1, 2, 4, 8):
            rack.activate(dict.fromkeys(names[:count], 1.0))
            theirs.set_adapters(names[:count], [1.0] * count)
            _check_same(ours(**inputs)[0], theirs(**inputs)[0])
            yield seconds_of_both(f"forward with {count} active", lambda: ours(**inputs), lambda: theirs(**inputs))
        rack.fuse()
        yield seconds_of_both("forward, fused (ours), with 8 active (theirs)", lambda: ours(**inputs), lambda: theirs(**inputs))


def _check_same(ours: Tensor, theirs: Tensor) -> None:
    error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
    assert error < 0.02, f"the two sides differ by {error:.2g}: nothing to compare"


def _inputs() -> dict[str, Tensor | bool]:
    draw = torch.Generator().manual_seed(0)
    video = torch.randn(1, NUM_FRAMES, 16, 60, 90, generator=draw).bfloat16()
    text = torch.randn(1, 226, 4096, generator=draw).bfloat16()
    step = torch.tensor([500])
    return {"hidden_states": video, "encoder_hidden_states": text, "timestep": step, "return_dict": False}


def _adapter(model: CogVideoXTransformer3DModel, *, seed: int, rank: int = RANK) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    config: Any = model.config
    width = config.num_attention_heads * config.attention_head_dim
    names = [
        f"transformer.transformer_blocks.{n}.attn1.{leaf}"
        for n in range(config.num_layers)
        for leaf in ("to_q", "to_k", "to_v", "to_out.0")
    ]

    def pair() -> Pair:
        a, b = torch.randn(rank, width, generator=draw) / width**0.5, torch.randn(width, rank, generator=draw) * 0.01
        return Pair(a.bfloat16(), b.bfloat16(), ALPHA / RANK)

    spec = LoraSpec(rank=rank, alpha=rank * ALPHA / RANK)
    return Adapter(pairs={name: pair() for name in names}, spec=spec, layout="memory", scale_source="a benchmark")


def _write(model: CogVideoXTransformer3DModel, path: Path, *, seed: int) -> Path:
    write_adapter(_adapter(model, seed=seed), path)
    return path


def _config(rank: int) -> LoraConfig:
    return LoraConfig(**LoraSpec(rank=rank, alpha=rank).to_peft_dict())


def _in_turn(*calls: Callable[[], None]) -> Callable[[], None]:
    """Each call the next of these."""
    state = {"next": 0}

    def work() -> None:
        calls[state["next"] % len(calls)]()
        state["next"] += 1

    return work


def _once(what: str, ours: Callable[[], object], theirs: Callable[[], object]) -> Row:
    """One run of each, for work that cannot be repeated at once."""
    times = []
    for work in (ours, theirs):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return Row(what=what, unit="s", ours=times[0], theirs=times[1])
