"""Other values in the place of the live weights, for as long as somebody looks."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["RunningMean", "nothing_like", "showing"]

Parameters = Sequence[nn.Parameter]


@contextmanager
def showing(parameters: Parameters, values: Sequence[Tensor]) -> Iterator[None]:
    """Parameters with other values inside the block; the live tensors themselves are set aside, neither copied nor cast."""
    live = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, live, strict=True):
            parameter.data = value


def nothing_like(parameters: Parameters) -> list[Tensor]:
    """Zeros that take no memory: branches that hold them add nothing, which is the base."""
    return [torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape) for p in parameters]


class RunningMean:
    """An exponential mean of the weights over the steps; with ``decay`` 0 it is the live weights.

    Early steps count more, or the random start would stay in the mean: the decay of step ``n`` is at most
    ``(1 + n) / (10 + n)``. Source: diffusers, training_utils.EMAModel.
    """

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [parameter.detach().clone() if decay else parameter.detach() for parameter in parameters]

    def kept(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The values by the names of their parameters, where they are other tensors than the live ones."""
        return dict(zip(names, self.values, strict=True)) if self._decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step``."""
        if self._decay:
            decay = min(self._decay, (1 + step) / (10 + step))
            for value, parameter in zip(self.values, self._parameters, strict=True):
                value.lerp_(parameter, 1 - decay)
