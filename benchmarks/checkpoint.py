"""A SAT checkpoint at the width of CogVideoX-5B converted to diffusers and back: seconds and anonymous memory, beside ``cp``.

``python -m benchmarks.checkpoint --real`` takes all 42 layers, and 36 GB of disk.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

from reelora import recipes
from reelora.components import rebuilt_tables, sat_settings
from reelora.layouts import SAT_ROLES, sat_names
from reelora.tensorio import DeferredTensor, write_checkpoint

from .measured import measure
from .side_by_side import Row

__all__ = ["ALLOWANCE", "convert_back", "convert_to_diffusers", "make_checkpoint", "run"]

NUM_LAYERS, REAL_LAYERS = 4, 42
ALLOWANCE = 500_000_000
"""Bytes of anonymous memory above the imported process that a conversion may take."""
SCHEDULE = {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def make_checkpoint(folder: Path, *, num_layers: int) -> Path:
    """A SAT checkpoint of CogVideoX-5B's width in bfloat16, values at random, with the YAML that describes it."""
    with torch.device("meta"):
        model: Any = CogVideoXTransformer3DModel(
            num_layers=num_layers, num_attention_heads=48, use_rotary_positional_embeddings=True
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    joins = sat_names("transformer").write(shapes).joins
    tensors = {key: _random((sum(shapes[n][0] for n in join.names), *shapes[join.names[0]][1:])) for key, join in joins.items()}
    tensors |= rebuilt_tables(model, torch.bfloat16, num_dead_positions=64)
    settings = sat_settings(model.config, _schedule().config, vae=None, vae_path="", text_folder="", num_dead_positions=64)
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    (folder / "model.yaml").write_text(yaml.safe_dump(settings))
    module = {SAT_ROLES["transformer"] + key: tensor for key, tensor in tensors.items()}
    write_checkpoint(folder / "1" / "mp_rank_00_model_states.pt", {"module": module})
    return folder


def _schedule() -> Any:
    return CogVideoXDPMScheduler.from_config(SCHEDULE)


def _random(shape: tuple[int, ...]) -> DeferredTensor:
    """Values at random, the same million again and again: drawing all of them would take longer than writing them."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(prod(shape) % 1000)).bfloat16()
    return DeferredTensor(shape, block.dtype, lambda: block.repeat(-(-prod(shape) // len(block)))[: prod(shape)].view(shape))


def convert_to_diffusers(source: str, output: str) -> None:
    recipes.convert_checkpoint(
        source, Path(output), form="diffusers", roles=["transformer", "scheduler"], listener=recipes.Silent()
    )


def convert_back(source: str, output: str) -> None:
    recipes.convert_checkpoint(source, Path(output), form="sat", roles=["transformer"], listener=recipes.Silent())


def run(*, num_layers: int = NUM_LAYERS) -> Iterator[Row]:
    """Both ways from a warm file cache; the peer is ``cp`` of the same bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_checkpoint(folder / "sat", num_layers=num_layers)
        there, back = folder / "diffusers", folder / "back"
        seconds = _copy_seconds(source, folder / "copy")
        for what, function, start, stop in (
            ("SAT to diffusers", "convert_to_diffusers", source, there),
            ("diffusers to SAT", "convert_back", there, back),
        ):
            took, peak = measure("benchmarks.checkpoint", function, start, stop)
            size = f"5B width, {num_layers} layers"
            yield Row(what=f"{what}, {size} (beside cp)", unit="s", ours=took, theirs=seconds)
            yield Row(what=f"{what}, {size}: anonymous memory (allowed)", unit="MB", ours=peak / 1e6, theirs=ALLOWANCE / 1e6)


def _copy_seconds(source: Path, target: Path) -> float:
    """Of ``cp`` and bringing it to the disk, as conversion does."""
    import time

    started = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    for row in run(num_layers=REAL_LAYERS if "--real" in sys.argv else NUM_LAYERS):
        print(f"{row.what}: {row.ours:.4g} {row.unit}, {row.theirs:.4g} {row.unit}")
