"""One base in the peer's hands, in a rack's, and untouched."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from peft.tuners.lora import LoraLayer
from test_using import FIRST
from torch import nn

from reelora.adapters import Adapter, write_adapter
from reelora.lora import Rack

PATH = FIRST.partition(".")[2]


class Sides:
    """One base three times: in the peer's hands, in a rack's, and untouched; and adapters for it in files."""

    def __init__(self, base: nn.Module, folder: Path) -> None:
        self.base: Any = base.requires_grad_(False)
        self.folder = folder
        self.theirs, self.ours = copy.deepcopy(self.base), copy.deepcopy(self.base)
        self.pipe, self.rack = pipeline(self.theirs), Rack(self.ours)
        self.adapters: dict[str, Adapter] = {}

    def write(self, name: str, adapter: Adapter) -> Path:
        """Put an adapter into a file that both sides can read."""
        self.adapters[name] = adapter
        write_adapter(adapter, self.folder / f"{name}.safetensors")
        return self.folder / f"{name}.safetensors"

    def give(self, name: str, **settings: Any) -> None:
        """The peer loads a file."""
        self.pipe.load_lora_weights(self.folder, weight_name=f"{name}.safetensors", **{"adapter_name": name} | settings)

    def take(self, name: str, path: Path | None = None) -> None:
        """The rack loads a file."""
        self.rack.load(name, path or self.folder / f"{name}.safetensors")

    def acting(self, model: nn.Module, path: str = PATH) -> Any:
        layer, base = model.get_submodule(path), self.base.get_submodule(path)
        eye = torch.eye(base.in_features, dtype=base.weight.dtype)
        with torch.no_grad():
            return self._strengths((layer(eye) - base(eye)).T, path)

    def held(self, model: nn.Module) -> Any:
        return self._strengths(weight_in(model) - weight_in(self.base), PATH)

    def _strengths(self, change: torch.Tensor, path: str) -> Any:
        updates = [self.adapters[name].delta(f"transformer.{path}").flatten() for name in sorted(self.adapters)[:2]]
        found = torch.linalg.lstsq(torch.stack(updates, dim=1).double(), change.flatten()[:, None].double()).solution
        return pytest.approx(found.flatten().tolist(), abs=1e-3)

    def is_pristine(self, model: nn.Module) -> bool:
        return all(torch.equal(now, then) for now, then in zip(bare(model), bare(self.base), strict=True))


def pipeline(transformer: Any) -> Any:
    """A stock pipeline around a transformer; its other parts are not needed for adapters."""
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    return CogVideoXPipeline(transformer=transformer, scheduler=CogVideoXDPMScheduler(), **parts)


def weight_in(model: nn.Module) -> torch.Tensor:
    layer: Any = model.get_submodule(PATH)
    return getattr(layer, "base_layer", layer).weight.detach()


def bare(model: nn.Module) -> list[torch.Tensor]:
    """The weights of the base, whatever hangs in the model."""
    return [tensor for name, tensor in model.named_parameters() if "lora_" not in name]


def layers_of_peft(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
