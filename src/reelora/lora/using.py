"""Adapters on a model for the length of a block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from reelora.adapters import Adapter

from .rack import Rack

__all__ = ["using"]

Uses = Sequence[tuple[Adapter, float]]


@contextmanager
def using(model: nn.Module, adapters: Uses) -> Iterator[None]:
    """Run a model with adapters at their strengths (1.0: as trained, 0: off); afterwards it is exactly what it was before.

    This is a `Rack` for one use, with its checks: everything is found out before anything is touched.
    """
    rack = Rack(model)
    for number, (adapter, _) in enumerate(adapters):
        rack.load(f"adapter {number}", adapter)
    with rack.using({f"adapter {number}": strength for number, (_, strength) in enumerate(adapters)}):
        yield
