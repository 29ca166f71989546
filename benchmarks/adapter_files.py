"""Whole CogVideoX-5B adapters (168 modules, rank 128) from file to file: seconds, and anonymous memory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from reelora.adapters import merge, read_adapter, resize, write_adapter

from .measured import Measured, measure
from .side_by_side import Row

__all__ = ["ALLOWANCE", "make_adapter", "run"]

WIDTH, RANK, NUM_LAYERS = 3072, 128, 42
ALLOWANCE = 300_000_000
"""Bytes above the adapters' own size that any of this may take."""


def make_adapter(path: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, num_layers: int = NUM_LAYERS) -> None:
    """An adapter file of real shapes with random values, as diffusers writes it."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(num_layers):
        for leaf in ("to_q", "to_k", "to_v", "to_out.0"):
            name = f"transformer.transformer_blocks.{layer}.attn1.{leaf}"
            tensors[f"{name}.lora_A.weight"] = (torch.randn(RANK, WIDTH, generator=draw) / WIDTH**0.5).to(dtype)
            tensors[f"{name}.lora_B.weight"] = (torch.randn(WIDTH, RANK, generator=draw) * 0.01).to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def convert(source: str, output: str, layout: str) -> None:
    write_adapter(read_adapter(source, alpha=64), output, layout)


def halve(source: str, output: str) -> None:
    write_adapter(resize(read_adapter(source, alpha=64), rank=RANK // 2), output)


def add(first: str, second: str, output: str) -> None:
    write_adapter(merge([(read_adapter(first, alpha=64), 0.7), (read_adapter(second, alpha=64), 0.5)]), output)


def rename(source: str, output: str) -> None:
    """What a converter without proof does: load all, name it otherwise, save."""
    save_file({f"base_model.model.{name}": tensor for name, tensor in load_file(source).items()}, output)


def run() -> Iterator[Row]:
    """Beside loading and saving with the safetensors library alone, which proves nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = folder / "first.safetensors", folder / "second.safetensors"
        make_adapter(first)
        make_adapter(second, seed=1)
        floor = measure(__name__, "rename", first, folder / "renamed.safetensors")
        for what, found in _jobs(first, second, folder):
            yield Row(what=f"{what} (theirs: load and save)", unit="s", ours=found[0], theirs=floor[0])
            yield Row(what=f"{what}: anonymous memory", unit="MB", ours=max(found[1], 1) / 1e6, theirs=floor[1] / 1e6)


def _jobs(first: Path, second: Path, folder: Path) -> Iterator[tuple[str, Measured]]:
    for layout, ending in (("kohya", ".safetensors"), ("sat", ".pt")):
        output = folder / f"{layout}{ending}"
        yield f"convert 5B, float32, diffusers to {layout}", measure(__name__, "convert", first, output, layout)
        output.unlink()
    yield "resize 5B to rank 64, file to file", measure(__name__, "halve", first, folder / "half.safetensors")
    yield "merge two 5B adapters, file to file", measure(__name__, "add", first, second, folder / "sum.safetensors")
