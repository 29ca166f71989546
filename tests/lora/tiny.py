"""Tiny real models, and what they make of fixed inputs."""

import torch
from tiny_models import build_transformer, build_unet


def tiny_transformer():
    torch.manual_seed(0)
    return build_transformer("2B", sample_width=8, sample_height=8).eval()


def tiny_unet():
    torch.manual_seed(0)
    return build_unet().eval()


def run(model, *, dtype=torch.float32, **settings):
    """The model's output for inputs drawn from a fixed seed."""
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(2, 8, 16, generator=draw).to(dtype)
    video = torch.randn(2, 3, 4, 8, 8, generator=draw).to(dtype)
    steps = torch.tensor([5, 900])
    if type(model).__name__.startswith("UNet"):
        return model(video[:, 0], steps, text).sample
    return model(hidden_states=video, encoder_hidden_states=text, timestep=steps, **settings).sample
