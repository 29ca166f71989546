"""What a base in less memory costs: a step with each form of it beside the same step with the base as it is.

At CogVideoX-2B's width with 3 blocks and 1,126 tokens, and with 2 blocks and 4,006, in bfloat16 with rank 128: a weight is made
again for every use, however many tokens there are, so that it costs the less the more there are. All forms step in turn in one
process; what is counted is processor time, and of that the best. On a CPU, copying to the device is copying in memory; there
the rows of streaming tell what it costs where nothing runs beside.
"""

import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from reelora import LoraSpec, attach
from reelora.lora import Shadows, base_bytes, store_base

from .models import build_transformer
from .side_by_side import Row

__all__ = ["run"]

SIZES = {"1,126 tokens": (3, (1, 60, 60), 5), "4,006 tokens": (2, (3, 60, 84), 3)}
"""Blocks, latent frames with their height and width, and steps that are measured after one that is not."""
FORMS: Sequence[tuple[Any, bool]] = (
    ("precision", False),
    ("precision", True),
    ("fp8", False),
    ("int8", False),
    *([("nf4", False)] if find_spec("bitsandbytes") else []),
    ("fp8", True),
)
TEXT_TOKENS = 226
CPU = torch.device("cpu")


def run() -> Iterator[Row]:
    """Seconds of a step and bytes of the base; theirs is the base as it is, in bfloat16."""
    for name, (num_layers, latents, steps) in SIZES.items():
        models = {form: _model(*form, num_layers=num_layers) for form in FORMS}
        inputs = _inputs(latents)
        best: dict[Any, float] = {}
        for number in range(steps + 1):
            for form, model in models.items():
                seconds = _step(model, inputs)
                if number:
                    best[form] = min(seconds, best.get(form, seconds))
        plain = FORMS[0]
        for storage, stream in FORMS[1:]:
            form = (storage, stream)
            what = f"2B, {num_layers} blocks, {name}, base in {storage}{', streamed' if stream else ''} (theirs: as it is)"
            yield Row(what=f"{what}: step", unit="s", ours=best[form], theirs=best[plain])
            sizes = [base_bytes(models[one]) / 1e6 for one in (form, plain)]
            yield Row(what=f"{what}: base on the device", unit="MB", ours=sizes[0], theirs=sizes[1])


def _model(storage: Any, stream: bool, *, num_layers: int) -> Any:
    torch.manual_seed(0)
    model = build_transformer("2B", num_layers=num_layers)
    if (storage, stream) != FORMS[0]:
        store_base(model, storage, stream=stream, device=CPU)
    attach(model, LoraSpec(rank=128, alpha=64))
    return model.train()


def _inputs(latents: tuple[int, int, int]) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = latents
    video = torch.randn(1, frames, 16, height, width, generator=draw).bfloat16()
    text = torch.randn(1, TEXT_TOKENS, 4096, generator=draw).bfloat16()
    return {"hidden_states": video, "encoder_hidden_states": text, "timestep": torch.tensor([500]), "return_dict": False}


def _step(model: Any, inputs: dict[str, Any]) -> float:
    """Seconds of the processor for a forward and a backward pass that keep everything."""
    started = time.process_time()
    with Shadows(model).cast():
        model(**inputs)[0].float().square().mean().backward()
    model.zero_grad()
    return time.process_time() - started
