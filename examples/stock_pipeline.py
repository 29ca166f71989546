"""A stock diffusers pipeline with a Rack in its middle: ``python examples/stock_pipeline.py MODEL ADAPTER VIDEO``.

MODEL is any CogVideoX text-to-video folder or hub id, or ``pocket``; ADAPTER a file of any dialect.
"""

import sys

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline

from reelora import Clip, Rack
from reelora.pocket import MODEL


def main(model: str, adapter: str, video: str, *, prompt: str = "a blue twinkle stands still on a white background") -> None:
    """Generate with the adapter fused at strength 0.8; the base is as it was when this is over."""
    pipe = CogVideoXPipeline.from_pretrained(MODEL if model == "pocket" else model, dtype=torch.bfloat16)

    rack = Rack(pipe)
    rack.load("style", adapter)
    rack.activate({"style": 0.8})
    rack.fuse()
    print(rack.state)

    pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    frames = pipe(prompt, num_inference_steps=20, guidance_scale=4, generator=torch.Generator().manual_seed(1)).frames[0]
    Clip(frames=torch.from_numpy(np.stack(frames)), fps=8).save(video)
    rack.restore()


if __name__ == "__main__":
    main(*sys.argv[1:4])
