"""The training loop of the pocket model's parts: AdamW or Muon, warm-up and cosine, averaged weights, exact resume."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Measure", "Plan", "average_of", "fit", "placed"]

Model = TypeVar("Model", bound=nn.Module)
Measure = Callable[[int, Mapping[str, Tensor]], Mapping[str, float]]
"""Further figures of a checkpoint, from its step and its averaged weights."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast one stage learns."""

    num_steps: int
    learning_rate: float
    """Of AdamW."""
    muon_rate: float = 0.0
    """Of Muon, for the parameters that ``is_hidden`` names; 0: AdamW for all. Source: Jordan, Muon, 2024; torch.optim.Muon."""
    is_hidden: re.Pattern[str] = re.compile("")
    """The matrices inside the blocks."""
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    averaging: float = 0.998
    """Decay of the exponential moving average whose weights are shipped."""
    checkpoint_every: int = 200

    def share(self, step: int) -> float:
        """Of every learning rate, what is used at ``step``: linear warm-up, then half a cosine to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW for all parameters, or for all but the hidden matrices, which Muon has."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        hidden = {name for name in named if self.muon_rate and self.is_hidden.search(name)}
        rest = [parameter for name, parameter in named.items() if name not in hidden]
        adam = torch.optim.AdamW(rest, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=self.weight_decay)
        if not hidden:
            return [adam]
        return [adam, torch.optim.Muon([named[name] for name in sorted(hidden)], lr=self.muon_rate, weight_decay=0.0)]


def _write_atomically(path: Path, state: dict) -> None:
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)


def placed(model: Model, device: torch.device) -> Model:
    """The same model, moved in place."""
    nn.Module.to(model, device)  # diffusers' own method is typed as a function without its model
    return model


def average_of(model: Model, folder: Path) -> Model:
    """Put the averaged weights of the newest checkpoint in ``folder`` into ``model``."""
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", mmap=True)
    model.load_state_dict(state["average"])
    return model


def fit(
    model: nn.Module,
    loss: Callable[[int], Mapping[str, Tensor]],
    plan: Plan,
    folder: Path,
    *,
    report: Callable[[str], None],
    measure: Measure = lambda step, average: {},
) -> None:
    """Minimise ``loss(step)["loss"]`` over ``model`` and leave ``checkpoint.pt`` and ``curve.jsonl`` in ``folder``.

    Resumes from ``checkpoint.pt``. ``loss`` must draw all randomness from its step, so that a resumed run repeats nothing
    and skips nothing. With each checkpoint ``measure(step, average)`` may add figures, taken from the averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, curve = folder / "checkpoint.pt", folder / "curve.jsonl"
    optimizers = plan.optimizers(model)
    rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=next(model.parameters()).device)
        model.load_state_dict(state["model"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        average, first, seconds = state["average"], state["step"], state["seconds"]
        report(f"resumed at step {first}")
    model.train()
    started, sums, counted = time.monotonic() - seconds, {}, 0
    for step in range(first, plan.num_steps):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * plan.share(step)
        parts = loss(step)
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(plan.averaging, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        sums = {name: sums.get(name, 0.0) + float(value.detach()) for name, value in parts.items()}
        counted += 1
        if (step + 1) % plan.checkpoint_every == 0 or step + 1 == plan.num_steps:
            seconds = time.monotonic() - started
            state = {"model": model.state_dict(), "average": average, "step": step + 1, "seconds": seconds}
            _write_atomically(checkpoint, state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]})
            row = {"step": step + 1, "seconds": round(seconds, 1)} | {name: total / counted for name, total in sums.items()}
            row |= measure(step + 1, average)
            with curve.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            report("  ".join(f"{name} {value:.5g}" for name, value in row.items()))
            sums, counted = {}, 0
