"""Loading a transformer that was saved in bfloat16."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

from reelora import load_components

from .models import build_transformer
from .side_by_side import Row, seconds_of_both

__all__ = ["run"]

NUM_LAYERS = 6


def run() -> Iterator[Row]:
    """From a warm file cache, in the stored precision."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_transformer("2B", num_layers=NUM_LAYERS).save_pretrained(folder / "transformer")
        index = {"_class_name": "CogVideoXPipeline", "transformer": ["diffusers", "CogVideoXTransformer3DModel"]}
        (folder / "model_index.json").write_text(json.dumps(index))

        def theirs() -> None:
            CogVideoXTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.bfloat16)

        def ours() -> None:
            load_components(folder, roles=["transformer"])

        yield seconds_of_both(f"load a transformer, 2B width, {NUM_LAYERS} blocks", ours, theirs)
