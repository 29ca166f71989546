"""One loaded model, one adapter, many strengths: ``python examples/switch_live.py demo/adapter.safetensors OUT``.

Writes a picture for each strength into the folder OUT, all with the same seed, switching between them without loading anything.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline

from reelora import Rack
from reelora.pocket import MODEL

STRENGTHS: Mapping[str, float | Mapping[str, float]] = {
    "base": 0.0,
    "half": 0.5,
    "full": 1.0,
    "first blocks only": {"transformer_blocks.[0-2].*": 1.0, "*": 0.0},
}


def main(adapter: str, folder: str, *, steps: int = 20) -> None:
    """Make the middle frame of one video at every strength."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    pipe = CogVideoXPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    rack = Rack(pipe)
    rack.load("star", adapter)
    for name, strength in STRENGTHS.items():
        with rack.using({"star": strength}):
            video = pipe(
                "a blue twinkle stands still on a white background",
                num_inference_steps=steps,
                guidance_scale=4,
                max_sequence_length=24,
                generator=torch.Generator().manual_seed(1),
            ).frames[0]
        video[len(video) // 2].save(Path(folder) / f"{name}.png")
    print(rack.state)


if __name__ == "__main__":
    main(*sys.argv[1:3])
