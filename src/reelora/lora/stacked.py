"""Stand-ins for inference: all active pairs of a module as one, with gains that change without touching A or B."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from reelora.errors import MismatchError

from .branch import StandIn, add_product

__all__ = ["NOTHING", "STACKED", "Held", "Stacked", "StackedLinear", "stand_in_for"]

Held = Mapping[str, Tensor | None]
"""The tensors that a stand-in acts with, by name: all of those of `NOTHING`."""
NOTHING: Held = MappingProxyType(dict.fromkeys(("lora_a", "lora_b", "gains", "dense", "shared_a")))
"""With these it acts as its base."""


class Stacked(StandIn, ABC):
    """``y = f(x) + B (gains * (A x)) + D x`` for inference: all active pairs as one, beside a dense update for what is no pair.

    The gains (scale times strength) act on the rank-wide intermediate in float32: one number per row of A, or one such row for
    each sample of the batch. A, B and gains are what `hold` was given last, so that other adapters or strengths mean other
    tensors in the same modules, and code that was compiled for these modules stays valid.
    """

    lora_a: Tensor | None
    lora_b: Tensor | None
    gains: Tensor | None
    dense: Tensor | None
    shared_a: Tensor | None
    """On ``to_q``: the A of query, key and value, one below the other."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.hold(NOTHING)

    def hold(self, held: Held) -> None:
        """Act as these from now on; nothing is copied."""
        vars(self).update(held)  # no buffers: whoever moves, casts or offloads the base's weight must not do so to these

    @property
    def may_be_bypassed(self) -> bool:
        """Whether `beside` may be called in place of the module: nobody has hung a hook on it that brings its weight."""
        return "forward" not in self.__dict__

    def follow(self, device: torch.device) -> None:
        """Bring everything to a device, if the model was moved there meanwhile."""
        anchor = self.dense if self.gains is None else self.gains
        if anchor is not None and anchor.device != device:
            held = {name: getattr(self, name) for name in NOTHING}
            self.hold({name: None if tensor is None else tensor.to(device) for name, tensor in held.items()})

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name that nn.Linear gives it)
        self.follow(input.device)
        return self.beside(input, self.narrow(input, self.lora_a) if self.lora_a is not None else None)

    def beside(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """The output for ``x`` where ``hidden``, A x, is known already."""
        y = self.through_base(x)
        if hidden is not None and self.lora_b is not None and self.gains is not None:
            y = self._widen(y, self._weigh(hidden, self.gains).to(y.dtype), self.lora_b.to(y.dtype))
        if self.dense is not None:
            y = y + self.narrow(x, self.dense)
        return y

    @abstractmethod
    def narrow(self, x: Tensor, factor: Tensor) -> Tensor:
        """``x`` through a matrix (or a kernel) in place of the weight, without bias."""

    @abstractmethod
    def _widen(self, y: Tensor, hidden: Tensor, b: Tensor) -> Tensor:
        """``y`` and B times the weighed ``hidden``."""

    def _weigh(self, hidden: Tensor, gains: Tensor) -> Tensor:
        """Each row of A with its gain; with gains ``(n, r)`` the batch is n samples, or a multiple of n (guidance)."""
        if gains.dim() == 1:
            return hidden * self._along_ranks(gains, hidden)
        if len(hidden) % len(gains):
            raise MismatchError(
                f"The batch has {len(hidden)} rows, adapters are set for {len(gains)} samples: set one for each."
            )
        return hidden * self._along_ranks(gains.repeat(len(hidden) // len(gains), 1), hidden)

    @abstractmethod
    def _along_ranks(self, gains: Tensor, hidden: Tensor) -> Tensor:
        """The gains shaped so that they multiply ``hidden`` along its ranks."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={0 if self.lora_a is None else len(self.lora_a)}"


class StackedLinear(Stacked, nn.Linear):
    """A Linear with A ``(r, in)``, B ``(out, r)`` and D ``(out, in)``."""

    def narrow(self, x: Tensor, factor: Tensor) -> Tensor:
        return nn.functional.linear(x, factor.to(x.dtype))

    def _widen(self, y: Tensor, hidden: Tensor, b: Tensor) -> Tensor:
        return add_product(y, hidden, b)

    def _along_ranks(self, gains: Tensor, hidden: Tensor) -> Tensor:
        return gains if gains.dim() == 1 else gains.view(len(gains), *[1] * (hidden.dim() - 2), -1)


class _StackedConv(Stacked):
    """A convolution with A ``(r, in, kernel)``, B ``(out, r, 1 ...)`` and D ``(out, in, kernel)``; A strides as its base."""

    def narrow(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.base._conv_forward(x, factor.to(x.dtype), None)

    def _widen(self, y: Tensor, hidden: Tensor, b: Tensor) -> Tensor:
        return y + torch.einsum("br...,or->bo...", hidden, b.flatten(1))

    def _along_ranks(self, gains: Tensor, hidden: Tensor) -> Tensor:
        return gains.view(-1, gains.shape[-1], *[1] * (hidden.dim() - 2))


class StackedConv2d(_StackedConv, nn.Conv2d):
    """A Conv2d with a stack beside it."""


class StackedConv3d(_StackedConv, nn.Conv3d):
    """A Conv3d with a stack beside it."""


STACKED: Mapping[type[nn.Module], type[Stacked]] = {
    nn.Linear: StackedLinear,
    nn.Conv2d: StackedConv2d,
    nn.Conv3d: StackedConv3d,
}
"""What stands in for a module of a class (or of one that derives from it) while adapters act on it."""


def stand_in_for(base: nn.Module) -> Stacked:
    """A stand-in that holds nothing yet."""
    return next(stacked for kind, stacked in STACKED.items() if isinstance(base, kind))(base)
