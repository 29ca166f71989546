"""Which block keeps what in this run, and what a step takes by that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from reelora.errors import ConfigError
from reelora.lora import free_bytes
from reelora.plan import Held, Rehearsal, choose, extra_work, gibibytes, peak_bytes, rehearse, said, uniform

from .config import LoopConfig
from .recompute import Kept, ways_of

__all__ = ["MemoryPlan", "plan_memory"]

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
    """Of trained weights, their copies in the base's precision, the optimizer's state and the running mean."""
    step_bytes: int | None = None
    """Of activations and gradients at the peak; None where it was not rehearsed."""
    extra_work: float = 0.0
    """Operations that are done again, as a share of a step that does none again."""

    @property
    def total_bytes(self) -> int | None:
        """At the peak, of tensors alone."""
        return None if self.step_bytes is None else self.base_bytes + self.adapter_bytes + self.step_bytes

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of every line to print."""
        kept = said(self.chosen.values()) or f"all {said([self.otherwise]).removeprefix('1 ')}"
        work = f"; {self.extra_work:.0%} more work" if self.extra_work >= 0.005 else ""
        return [("memory", f"{self._sizes()} ({self.why})"), ("blocks", f"{kept}{work}")]

    def __str__(self) -> str:
        return "\n".join(f"{label:<10} {text}" for label, text in self.rows())

    def _sizes(self) -> str:
        known = f"{gibibytes(self.base_bytes)} base, {gibibytes(self.adapter_bytes)} adapter"
        if self.step_bytes is None or self.total_bytes is None:
            return f"{known}, and activations with gradients"
        return f"{known}, {gibibytes(self.step_bytes)} activations and gradients: {gibibytes(self.total_bytes)} at the peak"


def plan_memory(model: nn.Module, run: Run, config: LoopConfig, *, device: torch.device, processes: int = 1) -> MemoryPlan:
    """What the blocks of ``model`` keep by the settings; ``run`` is its forward pass on the largest batch.

    With ``gradient_checkpointing`` set, all keep their inputs or everything. Else as much as possible is kept within
    ``memory``; ``auto`` is most of what is free on ``device``, shared by as many ``processes`` where that is the host's.
    Raises ConfigError where even the least does not fit into the memory that is given.
    """
    told = {"has_mean": config.ema_decay > 0, "num_processes": processes, "is_sharded": config.shard_base}
    held = Held.of(model, config.optimizer.kind, **told)
    if config.gradient_checkpointing != "auto":
        kept: Kept = "inputs" if config.gradient_checkpointing else "everything"
        why = f"loop.gradient_checkpointing = {str(config.gradient_checkpointing).lower()}"
        return MemoryPlan(otherwise=kept, why=why, base_bytes=held.base_bytes, adapter_bytes=held.adapter_bytes)
    budget, why = _budget(config, held, device, processes)
    room, is_accumulating = budget - held.total_bytes, config.gradient_accumulation > processes
    first = rehearse(model, run, ways_of, wanted=("everything",))
    everything = uniform(first, 0)
    if peak_bytes(first, everything, is_accumulating=is_accumulating) <= room:
        return _planned(first, everything, held, why, is_accumulating=is_accumulating)
    rehearsal = rehearse(model, run, ways_of)
    chosen = choose(rehearsal, room, is_accumulating=is_accumulating)
    plan = _planned(rehearsal, chosen, held, why, is_accumulating=is_accumulating)
    if config.memory != "auto" and plan.total_bytes is not None and plan.total_bytes > budget:
        raise ConfigError(
            f"loop.memory is {config.memory:g} GiB, and a step takes {gibibytes(plan.total_bytes)} at the least: "
            f"{plan.rows()[0][1]}. Take fewer or smaller frames, a smaller loop.batch_size or lora.rank, or give it more."
        )
    return plan


def _planned(
    rehearsal: Rehearsal[Kept], chosen: Mapping[nn.Module, Kept], held: Held, why: str, *, is_accumulating: bool
) -> MemoryPlan:
    return MemoryPlan(
        chosen=chosen,
        why=why,
        base_bytes=held.base_bytes,
        adapter_bytes=held.adapter_bytes,
        step_bytes=max(held.update_bytes, peak_bytes(rehearsal, chosen, is_accumulating=is_accumulating)),
        extra_work=extra_work(rehearsal, chosen),
    )


def _budget(config: LoopConfig, held: Held, device: torch.device, processes: int) -> tuple[int, str]:
    """Bytes that a step may take with all that it needs, and who said so."""
    if config.memory != "auto":
        return held.budget(config.memory, is_host=True, free_bytes=0), f"loop.memory = {config.memory:g} GiB"
    is_host, free = device.type == "cpu", free_bytes(device)
    is_empty = is_host or config.shard_base  # a base that is to be split is still on the host
    budget = held.budget("auto", is_host=is_empty, free_bytes=free, num_processes=processes if is_host else 1)
    beside = "" if is_empty else " beside the base"
    return budget, f"loop.memory = auto, {gibibytes(free)} free{beside}"
