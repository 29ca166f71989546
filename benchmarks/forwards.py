"""A forward of CogVideoX-2B's width with 1 to 8 active adapters of rank 128: as branches, and fused."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from reelora import Rack

from .bases import write_random_adapter
from .models import build_transformer
from .side_by_side import Row, seconds_of_both

__all__ = ["run"]

NUM_BLOCKS, NUM_FRAMES, REPEATS = 4, 2, 5
TOLERANCES = {torch.bfloat16: 0.02, torch.float32: 1e-5}
"""Relative: bfloat16 rounds in other places."""


def run() -> Iterator[Row]:
    """In bfloat16 and in float32."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.safetensors" for number in range(8)]
        for number, path in enumerate(files):
            write_random_adapter(path, "2B", num_layers=NUM_BLOCKS, seed=number)
        for dtype, tolerance in TOLERANCES.items():
            yield from _forwards(files, dtype, tolerance)


def _forwards(files: list[Path], dtype: torch.dtype, tolerance: float) -> Iterator[Row]:
    base, ours, theirs = (build_transformer("2B", num_layers=NUM_BLOCKS, dtype=dtype) for _ in range(3))
    for model in (ours, theirs):
        model.load_state_dict(base.state_dict())
    rack, names = Rack(ours), [f"a{number}" for number in range(len(files))]
    for name, path in zip(names, files, strict=True):
        rack.load(name, path)
        options = {"use_safetensors": True, "low_cpu_mem_usage": True}
        theirs.load_lora_adapter(path, prefix="transformer", adapter_name=name, **options)
    inputs = _inputs(dtype)
    precision = str(dtype).removeprefix("torch.")
    for count in (1, 2, 4, 8):
        rack.activate(dict.fromkeys(names[:count], 1.0))
        theirs.set_adapters(names[:count], [1.0] * count)
        _check_same(ours(**inputs)[0], theirs(**inputs)[0], tolerance)
        yield seconds_of_both(
            f"forward with {count} active, {precision}", lambda: ours(**inputs), lambda: theirs(**inputs), repeats=REPEATS
        )
    rack.fuse()
    yield seconds_of_both(
        f"forward, 8 fused (theirs: the base alone), {precision}",
        lambda: ours(**inputs),
        lambda: base(**inputs),
        repeats=REPEATS,
    )


def _check_same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
    assert error < tolerance, f"the two sides differ by {error:.2g}: nothing to compare"


def _inputs(dtype: torch.dtype) -> dict[str, Tensor | bool]:
    draw = torch.Generator().manual_seed(0)
    video = torch.randn(1, NUM_FRAMES, 16, 60, 90, generator=draw).to(dtype)
    text = torch.randn(1, 226, 4096, generator=draw).to(dtype)
    return {"hidden_states": video, "encoder_hidden_states": text, "timestep": torch.tensor([500]), "return_dict": False}
