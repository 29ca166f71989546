"""An adapter added into a transformer on disk: seconds, anonymous memory and rounding, beside diffusers + PEFT.

``python -m benchmarks.offline_fuse --real`` takes CogVideoX-2B at its real size, and 12 GB of memory-backed storage.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

from reelora import recipes
from reelora.adapters import Adapter, LoraSpec, Pair, read_adapter, write_adapter
from reelora.tensorio import open_tensors

from .measured import Measured, measure
from .models import build_transformer
from .side_by_side import Row

__all__ = ["ALLOWANCE", "make_files", "run"]

WIDTH, RANK, STRENGTH = 1920, 128, 0.8
SPEC = LoraSpec(rank=RANK, alpha=64)
NUM_LAYERS, REAL_LAYERS, REPEATS = 6, 30, 3
ALLOWANCE = 300_000_000
"""Bytes of anonymous memory above the imported process that a fuse may take."""
MEMORY_BACKED = Path("/dev/shm")
PROBE = "transformer_blocks.0.attn1.to_q"
WAYS = ("fuse_ours", "fuse_theirs")


def make_files(folder: Path, *, num_layers: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    """A transformer of 2B width in two shards, and an adapter on the four projections of its attentions; random values."""
    model = build_transformer("2B", num_layers=num_layers)
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder / "transformer", max_shard_size=f"{size_bytes * 6 // 10_000_000}MB")
    draw = torch.Generator().manual_seed(0)
    pairs = {
        f"transformer.transformer_blocks.{layer}.attn1.{leaf}": Pair(
            (torch.randn(RANK, WIDTH, generator=draw) / WIDTH**0.5).to(dtype),
            (torch.randn(WIDTH, RANK, generator=draw) * 0.01).to(dtype),
            SPEC.scale,
        )
        for layer in range(num_layers)
        for leaf in SPEC.target_modules
    }
    write_adapter(Adapter(pairs=pairs, spec=SPEC, layout="memory", scale_source="a benchmark"), folder / "a.safetensors")
    return folder / "transformer", folder / "a.safetensors"


def fuse_ours(base: str, adapter: str, output: str) -> None:
    recipes.fuse(base, recipes.read_adapters([f"{adapter}={STRENGTH}"]), Path(output), listener=recipes.Silent())


def fuse_theirs(base: str, adapter: str, output: str) -> None:
    model = CogVideoXTransformer3DModel.from_pretrained(base, dtype=torch.bfloat16)
    model.load_lora_adapter(Path(adapter).parent, weight_name=Path(adapter).name, prefix="transformer")
    model.fuse_lora(lora_scale=STRENGTH)
    model.unload_lora()
    model.save_pretrained(output)


def run(*, num_layers: int = NUM_LAYERS, repeats: int = REPEATS) -> Iterator[Row]:
    """An adapter in bfloat16 and one in float32, from a warm file cache."""
    with tempfile.TemporaryDirectory(dir=MEMORY_BACKED if MEMORY_BACKED.is_dir() else None) as name:
        for dtype in (torch.bfloat16, torch.float32):
            folder = Path(name)
            base, adapter = make_files(folder, num_layers=num_layers, dtype=dtype)
            found = _measure_both(base, adapter, folder, repeats)
            what = f"fuse on disk, 2B width, {num_layers} blocks, {dtype} adapter".replace("torch.", "")
            yield from _rows(what, *found)
            shares = [_misrounded(base, adapter, folder / way) for way in WAYS]
            yield Row(what=f"{what}: misrounded share", unit="", ours=shares[0], theirs=shares[1])
            for path in (base, *(folder / way for way in WAYS)):
                shutil.rmtree(path)


def _measure_both(base: Path, adapter: Path, folder: Path, repeats: int) -> list[list[Measured]]:
    """Both ways in turn, each in a process of its own that has imported everything before; the last outputs stay."""
    found: list[list[Measured]] = [[] for _ in WAYS]
    for _ in range(repeats):
        for way, results in zip(WAYS, found, strict=True):
            shutil.rmtree(folder / way, ignore_errors=True)
            results.append(measure(__spec__.name, way, base, adapter, folder / way))
    return found


def _rows(what: str, ours: list[Measured], theirs: list[Measured]) -> Iterator[Row]:
    seconds = [min(time for time, _ in found) for found in (ours, theirs)]
    peaks = [max(peak for _, peak in found) / 1e6 for found in (ours, theirs)]
    yield Row(what=what, unit="s", ours=seconds[0], theirs=seconds[1])
    yield Row(what=f"{what}: anonymous memory", unit="MB", ours=peaks[0], theirs=peaks[1])


def _misrounded(base: Path, adapter: Path, output: Path) -> float:
    """Share of one weight's values that are not the sum in float64, rounded."""
    pair, name = read_adapter(adapter).pairs[f"transformer.{PROBE}"], f"{PROBE}.weight"
    update = (pair.b.double() @ pair.a.double()) * (SPEC.scale * STRENGTH)
    nearest = (open_tensors(base)[name].double() + update).bfloat16()
    wrong = open_tensors(output)[name] != nearest
    return max(1, int(wrong.sum())) / wrong.numel()


if __name__ == "__main__":
    for row in run(num_layers=REAL_LAYERS if "--real" in sys.argv else NUM_LAYERS):
        print(f"{row.what}: {row.ours:.4g} {row.unit}, theirs {row.theirs:.4g} {row.unit}, ratio {row.ratio:.2f}")
