"""What lies in memory throughout a run of training, whatever its blocks keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from torch import nn

from reelora.lora import TrainableLinear, base_bytes, sharded_base_bytes

from .device import GIB

__all__ = ["Held", "Memory", "Optimizer"]

Optimizer = Literal["adamw", "adamw8bit", "prodigy"]
Memory = float | Literal["auto"]
"""GiB that a step may take with all that it needs; ``auto`` is most of what is free."""

_SHARE = 0.85
"""Of what is free that ``auto`` takes; the rest is for gaps between blocks of memory and for whatever else runs."""


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """What an optimizer needs."""

    state: float
    """Bytes that it remembers of each trained number."""
    on_the_way: int = 0
    """Copies of one weight that it makes while it steps, of the largest at the most."""


_OPTIMIZERS: Mapping[Optimizer, _Needs] = {
    "adamw": _Needs(state=8),
    "adamw8bit": _Needs(state=2 + 2 * 4 / 256),
    "prodigy": _Needs(state=16, on_the_way=2),
}
"""Measured. adamw is torch's fused one, which makes nothing on its way; adamw8bit has a float32 scale for each 256 numbers of
either mean; prodigy remembers the weights that it began with and a sum of gradients besides."""

_SUMMED_COPIES = 2
"""Copies of all gradients while several processes sum theirs: one behind the other, and the sum."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes on the device beside those of a step's activations and gradients."""

    base_bytes: int
    """Of frozen weights and buffers, whichever way they are stored."""
    loaded_bytes: int
    """Of the adapter before the first step: trained weights and their copies in the base's precision."""
    state_bytes: int
    """What the optimizer remembers, and the running mean."""
    update_bytes: int
    """While the optimizer steps, with no activations left: gradients of all trained weights, and what is made on the way."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        has_mean: bool = False,
        num_processes: int = 1,
        is_sharded: bool = False,
    ) -> Self:
        """Of a model with its branches attached; ``is_sharded`` if its base is to be split over the processes."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        needs, weights = _OPTIMIZERS[optimizer], sum(parameter.nbytes for parameter in trained)
        on_the_way = needs.on_the_way * max((parameter.nbytes for parameter in trained), default=0)
        return cls(
            base_bytes=sharded_base_bytes(model, num_processes) if is_sharded else base_bytes(model),
            loaded_bytes=weights + _shadow_bytes(model),
            state_bytes=round(needs.state * sum(parameter.numel() for parameter in trained)) + weights * has_mean,
            update_bytes=weights + max(on_the_way, _SUMMED_COPIES * weights * (num_processes > 1)),
        )

    @property
    def adapter_bytes(self) -> int:
        """Of trained weights, their copies in the base's precision, the running mean and the optimizer's state."""
        return self.loaded_bytes + self.state_bytes

    @property
    def total_bytes(self) -> int:
        return self.base_bytes + self.adapter_bytes

    def budget(self, memory: Memory, *, is_host: bool, free_bytes: int, num_processes: int = 1) -> int:
        """Bytes that a step may take with all that it needs.

        ``free_bytes`` are those that are free once model and adapter are loaded, which on the host are pages of a file or next
        to nothing, and which the processes of the host share.
        """
        if memory != "auto":
            return int(memory * GIB)
        if is_host:
            return int(_SHARE * free_bytes / num_processes)
        return self.base_bytes + self.loaded_bytes + int(_SHARE * free_bytes)


def _shadow_bytes(model: nn.Module) -> int:
    """Bytes of the copies of A and B in the dtype of their base that `reelora.lora.Shadows` holds."""
    branches = (module for module in model.modules() if isinstance(module, TrainableLinear))
    return sum(_bytes_of_copies(branch) for branch in branches if not branch.why_apart)


def _bytes_of_copies(branch: TrainableLinear) -> int:
    return (branch.lora_a.numel() + branch.lora_b.numel()) * branch.weight.itemsize
