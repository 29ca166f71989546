"""Which block keeps what, so that a step fits into the memory that it may take."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from reelora.errors import ConfigError
from reelora.lora import free_bytes

from .config import LoopConfig, OptimizerKind
from .recompute import Kept
from .rehearsal import Cost, Rehearsal, rehearse

__all__ = ["MemoryPlan", "choose", "peak_bytes", "plan_memory"]

GIB = 2**30

_SHARE = 0.85
"""Of what is free that ``auto`` takes; the rest is for gaps between blocks of memory and for whatever else runs."""

_COPIES: Mapping[OptimizerKind, float] = {"adamw": 4.0, "adamw8bit": 2.5, "prodigy": 6.0}
"""Float32 numbers for each trained weight: itself, its gradient and what the optimizer remembers of it."""

Costs = Mapping[Kept, Cost]
Run = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What every block keeps, and what a step takes by that."""

    chosen: Mapping[nn.Module, Kept] = field(default_factory=dict)
    otherwise: Kept = "everything"
    """Of blocks that were not chosen for one by one."""
    why: str
    """Who has chosen, in words."""
    base_bytes: int
    adapter_bytes: int
    """Of trained weights, their gradients, the optimizer's state and the running mean."""
    step_bytes: int | None = None
    """Of activations at the peak, gradients of activations included; None where it was not rehearsed."""
    extra_work: float = 0.0
    """Operations that are done again, as a share of a step that does none again."""

    @property
    def total_bytes(self) -> int | None:
        """At the peak, of tensors alone."""
        return None if self.step_bytes is None else self.base_bytes + self.adapter_bytes + self.step_bytes

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of every line to print."""
        counts = Counter(self.chosen.values())
        kept = ", ".join(f"{counts[name]} {_SPOKEN[name]}" for name in _SPOKEN if counts[name])
        kept = kept or f"all {_SPOKEN[self.otherwise]}"
        work = f"; {self.extra_work:.0%} more work" if self.extra_work >= 0.005 else ""
        return [("memory", f"{self._sizes()} ({self.why})"), ("blocks", f"{kept}{work}")]

    def __str__(self) -> str:
        return "\n".join(f"{label:<10} {text}" for label, text in self.rows())

    def _sizes(self) -> str:
        known = f"{_gib(self.base_bytes)} base, {_gib(self.adapter_bytes)} adapter"
        if self.step_bytes is None or self.total_bytes is None:
            return f"{known}, and activations"
        return f"{known}, {_gib(self.step_bytes)} activations: {_gib(self.total_bytes)} at the peak"


_SPOKEN: Mapping[Kept, str] = {
    "everything": "keep everything",
    "products": "keep their products",
    "attention": "keep their attention's result",
    "inputs": "keep their inputs alone",
}


def plan_memory(model: nn.Module, run: Run, config: LoopConfig, *, device: torch.device, processes: int = 1) -> MemoryPlan:
    """What the blocks of ``model`` keep by the settings; ``run`` is its forward pass on the largest batch.

    With ``gradient_checkpointing`` set, all keep their inputs or everything. Else as much as possible is kept within
    ``memory``; ``auto`` is most of what is free on ``device``, shared by as many ``processes`` where that is the host's.
    Raises ConfigError where even the least does not fit into the memory that is given.
    """
    held = _Held.of(model, config)
    if config.gradient_checkpointing != "auto":
        kept: Kept = "inputs" if config.gradient_checkpointing else "everything"
        return held.plan(kept, f"loop.gradient_checkpointing = {str(config.gradient_checkpointing).lower()}")
    budget, why = _budget(config, held, device, processes)
    first = rehearse(model, run, ways=("everything",))
    if peak_bytes(first, dict.fromkeys(first.blocks, "everything")) <= budget - held.total:
        return held.rehearsed(first, dict.fromkeys(first.blocks, "everything"), why)
    rehearsal = rehearse(model, run)
    plan = held.rehearsed(rehearsal, choose(rehearsal, budget - held.total), why)
    if config.memory != "auto" and plan.total_bytes is not None and plan.total_bytes > budget:
        raise ConfigError(
            f"loop.memory is {config.memory:g} GiB, and a step takes {_gib(plan.total_bytes)} at the least: "
            f"{plan.rows()[0][1]}. Take fewer or smaller frames, a smaller loop.batch_size or lora.rank, or give it more."
        )
    return plan


def choose(rehearsal: Rehearsal, budget: int) -> dict[nn.Module, Kept]:
    """What each block keeps so that the step takes at most ``budget`` bytes and does as little again as possible.

    The least if nothing fits. What saves most bytes for its work goes first, and early blocks before late ones: when the
    backward pass comes to compute an early block again, what late blocks kept is free already.
    """
    chosen: dict[nn.Module, Kept] = dict.fromkeys(rehearsal.blocks, "everything")
    while peak_bytes(rehearsal, chosen) > budget:
        moves: list[tuple[float, nn.Module, Kept]] = [
            (_worth(costs[chosen[block]], cost), block, kept)
            for block, costs in rehearsal.blocks.items()
            for kept, cost in costs.items()
            if cost.kept_bytes < costs[chosen[block]].kept_bytes
        ]
        if not moves:
            break
        _, block, kept = max(moves, key=lambda move: move[0])
        chosen[block] = kept
    return chosen


def peak_bytes(rehearsal: Rehearsal, chosen: Mapping[nn.Module, Kept]) -> int:
    """What a step takes beside the weights, at the fullest place of its forward or backward pass."""
    before = peak = 0
    for block, costs in rehearsal.blocks.items():
        cost = costs[chosen[block]]
        before += cost.kept_bytes
        peak = max(peak, before + max(cost.forward_bytes, cost.backward_bytes))
    return rehearsal.rest_bytes + max(peak, before)


def _worth(now: Cost, then: Cost) -> float:
    """Bytes saved for each operation that is added."""
    return (now.kept_bytes - then.kept_bytes) / max(1, then.operations - now.operations)


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What lies in memory throughout."""

    base_bytes: int
    adapter_bytes: int

    @classmethod
    def of(cls, model: nn.Module, config: LoopConfig) -> Self:
        tensors = [*model.parameters(), *model.buffers()]
        copies = _COPIES[config.optimizer.kind] + (1 if config.ema_decay else 0)
        trained = sum(tensor.nbytes for tensor in tensors if tensor.requires_grad)
        return cls(
            base_bytes=sum(tensor.nbytes for tensor in tensors if not tensor.requires_grad),
            adapter_bytes=int(copies * trained),
        )

    @property
    def total(self) -> int:
        return self.base_bytes + self.adapter_bytes

    def plan(self, kept: Kept, why: str) -> MemoryPlan:
        return MemoryPlan(otherwise=kept, why=why, base_bytes=self.base_bytes, adapter_bytes=self.adapter_bytes)

    def rehearsed(self, rehearsal: Rehearsal, chosen: Mapping[nn.Module, Kept], why: str) -> MemoryPlan:
        done = [(costs[chosen[block]], costs["everything"]) for block, costs in rehearsal.blocks.items()]
        least = sum(once.operations for _, once in done)
        return MemoryPlan(
            chosen=chosen,
            why=why,
            base_bytes=self.base_bytes,
            adapter_bytes=self.adapter_bytes,
            step_bytes=peak_bytes(rehearsal, chosen),
            extra_work=sum(cost.operations for cost, _ in done) / max(1, least) - 1,
        )


def _budget(config: LoopConfig, held: _Held, device: torch.device, processes: int) -> tuple[int, str]:
    """Bytes that a step may take with all that it needs, and who said so."""
    if config.memory != "auto":
        return int(config.memory * GIB), f"loop.memory = {config.memory:g} GiB"
    free = free_bytes(device)
    if device.type == "cpu":
        return int(_SHARE * free / processes), f"loop.memory = auto, {_gib(free)} free"
    return held.base_bytes + int(_SHARE * free), f"loop.memory = auto, {_gib(free)} free beside the base"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / 2**20:.1f} MiB"
