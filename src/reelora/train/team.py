"""The processes that train together, each with a copy of the model and forward passes of its own.

What they exchange is summed, once per optimizer step: losses and the gradients of the branches. The model stays the object that
it is, without a wrapper, and a run's numbers do not depend on how many processes share its passes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Team"]

Item = TypeVar("Item")

_CPU = torch.device("cpu")
_PATIENCE = timedelta(hours=6)
"""How long one process may be busy with its own previews or with the first encoding of clips."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process's place among those that train together; alone by default."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device) -> Iterator[Self]:
        """The team that ``accelerate launch`` or ``torchrun`` has started; alone without them. Leaves it at the end."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            yield cls(device=device)
            return
        from accelerate import PartialState

        state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
        try:
            yield cls(rank=state.process_index, size=state.num_processes, device=_plain(state.device or device))
        finally:
            state.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this process's work."""
        return items[self.rank :: self.size]

    def rounds(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """The same as ``share``, for work that all have to do equally often: who has less does the last item too.

        Each with whether it counts; it does for one process.
        """
        mine = self.share(items)
        yield from ((item, True) for item in mine)
        if len(mine) * self.size < len(items):
            yield items[-1], False

    def as_first(self, are_true: Sequence[bool]) -> list[bool]:
        """What the first process says, of as many things as all processes ask about."""
        said = torch.tensor(are_true, dtype=torch.float32)
        return (self.sum(said if self.is_first else torch.zeros_like(said)) > 0).tolist()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the device of ``values``."""
        if self.size == 1:
            return values
        total = values.to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(values.device)

    def any(self, is_true: bool) -> bool:
        """Whether it is true for any of the processes."""
        return bool(self.sum(torch.tensor(float(is_true))) > 0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the sum over all processes into every ``grad``; a process without one adds nothing, and none stays none."""
        if self.size == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        counts = grads[0].new_tensor([parameter.grad is not None for parameter in parameters])
        *parts, counts = self.sum(torch.cat([grad.flatten() for grad in (*grads, counts)])).split(
            [grad.numel() for grad in (*grads, counts)]
        )
        for parameter, part, count in zip(parameters, parts, counts.tolist(), strict=True):
            # An optimizer passes over what has no gradient, but makes a weight smaller whose gradient is zero.
            parameter.grad = part.view_as(parameter) if count else None

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block before the others, which then find its work done."""
        if not self.is_first:
            self.any(False)
        try:
            yield
        finally:
            if self.is_first:
                self.any(False)


def _plain(device: torch.device) -> torch.device:
    """The CPU without the number that a launcher gives it."""
    return _CPU if device.type == "cpu" else device
