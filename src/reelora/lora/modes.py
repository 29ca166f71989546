"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .branch import StandIn

__all__ = ["evaluating"]


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode; afterwards every module is in the mode that it was in, also those that branches hide."""
    modes = [(module, module.training) for network in networks for module in _all_modules(network)]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _all_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Every module below a network, and the originals for which stand-ins stand in: these are no submodules."""
    for module in network.modules():
        yield module
        while isinstance(module, StandIn):
            module = module.base
            yield module
