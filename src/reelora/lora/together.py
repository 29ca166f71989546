"""Which branches run together, and copies of their factors for the length of a step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .branch import TrainableLinear, is_hooked
from .projections import Low, project
from .sites import SHARED_INPUT

__all__ = ["Shadows", "project_together", "roads", "why_not_together"]

TOGETHER, ALONE = "query, key and value in one node", "one node with its base"


def why_not_together(attention: Any) -> str:
    """Why query, key and value of an attention are projected one after the other; empty where they are one node."""
    modules = [getattr(attention, name) for name in SHARED_INPUT]
    branches = [module for module in modules if isinstance(module, TrainableLinear)]
    if len(branches) < len(modules):
        return "not all of query, key and value are trained"
    if len({(branch.weight.dtype, branch.weight.device) for branch in branches}) > 1:
        return "their weights differ in dtype or device"
    if any(map(is_hooked, branches)):
        return "a hook hangs on one of them"
    return next((branch.why_apart for branch in branches if branch.why_apart), "")


def project_together(branches: Sequence[TrainableLinear], x: Tensor) -> list[Tensor]:
    """What these make of ``x``, of which `why_not_together` says nothing."""
    low = branches[0].shared_shadow or _stacked([branch.low() for branch in branches])
    return project(x, [branch.frozen for branch in branches], low, [branch.masters for branch in branches])


def roads(model: nn.Module) -> dict[str, str]:
    """How each branch of a model runs in its next forward, by path: together, alone, or after its base and why."""
    branches = {path: module for path, module in model.named_modules() if isinstance(module, TrainableLinear)}
    together = {id(branch) for group in _groups(model) if len(group) > 1 for branch in group}
    return {path: _road(branch, id(branch) in together) for path, branch in branches.items()}


def _road(branch: TrainableLinear, is_together: bool) -> str:
    if branch.why_apart:
        return f"after its base, since {branch.why_apart}"
    return TOGETHER if is_together else ALONE


class Shadows:
    """Copies of A and B of a model's branches in the dtype of their base, those of one input below each other.

    They are made at the start of every step and forgotten at its end, so that they cannot be older than the weights, whoever
    has changed these in between: an optimizer, a running mean, a checkpoint.
    """

    def __init__(self, model: nn.Module) -> None:
        self._groups = _groups(model)
        self._lows: list[Low] = []

    @contextmanager
    def cast(self) -> Iterator[None]:
        """Let the branches use copies of the weights as they are now; nobody may change these inside."""
        if not self._lows:
            self._lows = [_room(group) for group in self._groups]
        self._refresh()
        for group, low in zip(self._groups, self._lows, strict=True):
            group[0].shared_shadow = low if len(group) > 1 else None
            for branch, a, b in zip(group, low.a.split(low.ranks), low.bs, strict=True):
                branch.shadow = Low(a=a, bs=[b])
        try:
            yield
        finally:
            for branch in (branch for group in self._groups for branch in group):
                branch.shadow = branch.shared_shadow = None

    @torch.no_grad()
    def _refresh(self) -> None:
        copies = [copy for low in self._lows for copy in (*low.a.split(low.ranks), *low.bs)]
        masters = [
            factor
            for group in self._groups
            for factors in zip(*(branch.masters for branch in group), strict=True)
            for factor in factors
        ]
        for copy, master in zip(copies, masters, strict=True):
            copy.copy_(master)


def _groups(model: nn.Module) -> list[list[TrainableLinear]]:
    """All branches that can use copies, those that run together in one list."""
    found: dict[int, TrainableLinear] = {
        id(module): module for module in model.modules() if isinstance(module, TrainableLinear) and not module.why_apart
    }
    groups = []
    for module in model.modules():
        if type(getattr(module, "processor", None)).__name__ == "StackedAttention" and not why_not_together(module):
            group = [getattr(module, name) for name in SHARED_INPUT]
            groups.append(group)
            for branch in group:
                del found[id(branch)]
    return [*groups, *([branch] for branch in found.values())]


def _stacked(lows: Sequence[Low]) -> Low:
    return Low(a=torch.cat([low.a for low in lows]), bs=[b for low in lows for b in low.bs])


def _room(group: Sequence[TrainableLinear]) -> Low:
    """Memory for the copies of a group."""
    first, dtype = group[0].lora_a, group[0].weight.dtype  # the weight itself may be split over processes now
    a = first.new_empty(sum(len(branch.lora_a) for branch in group), first.shape[1], dtype=dtype)
    return Low(a=a, bs=[first.new_empty(branch.lora_b.shape, dtype=dtype) for branch in group])
