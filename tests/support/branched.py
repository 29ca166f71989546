"""Tiny denoisers whose branches have an effect, and one forward pass of theirs."""

from collections.abc import Callable
from typing import Any

import torch
from tiny_models import NUM_TEXT_TOKENS, build_transformer, build_unet
from torch import Tensor, nn

from reelora.adapters import LoraSpec
from reelora.lora import attach
from reelora.train.predict import predictor_of

__all__ = ["branched", "forward"]


def branched(kind: str = "5B", dtype: torch.dtype = torch.float32, *, num_layers: int = 3, **spec: Any) -> Any:
    """A transformer of a kind, or a ``unet``, ready to train."""
    torch.manual_seed(0)
    shape = {"sample_width": 8, "sample_height": 8, "num_layers": num_layers}
    model: Any = build_unet() if kind == "unet" else build_transformer(kind, **shape)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    attach(model, LoraSpec(**{"rank": 4, "alpha": 2, **spec}))
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1, generator=draw)
    return model.train()


def forward(model: nn.Module, *, size: int = 8) -> Callable[[], Tensor]:
    """The model's forward pass on two fixed inputs of a height and width, and nothing yet."""
    draw = torch.Generator().manual_seed(1)
    frames = 1 if type(model).__name__.startswith("UNet") else 4
    video, text = torch.randn(2, frames, 4, size, size, generator=draw), torch.randn(2, NUM_TEXT_TOKENS, 16, generator=draw)
    predict = predictor_of(model)
    return lambda: predict(video, text, torch.tensor([5, 900]))
