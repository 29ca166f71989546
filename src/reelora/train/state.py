"""What a run has learned so far, as named tensors and JSON: weights, their running mean, the optimizer's own state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .shown import RunningMean

__all__ = ["State", "pack", "unpack"]

State = tuple[dict[str, Tensor], Any]
"""Tensors by name, and the rest as JSON that refers to them."""

_TENSOR = "tensor"


def pack(parameters: Mapping[str, nn.Parameter], mean: RunningMean, optimizer: Optimizer) -> State:
    """The state of everything that a step changes; the tensors are the live ones, not copies."""
    tensors = {f"weights.{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"mean.{name}": value for name, value in mean.kept(parameters).items()}
    return tensors, _packed(optimizer.state_dict(), "optimizer", tensors)


def unpack(state: State, parameters: Mapping[str, nn.Parameter], mean: RunningMean, optimizer: Optimizer) -> None:
    """Put a state back, bit for bit; the inverse of `pack`."""
    tensors, rest = state
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weights.{name}"])
        for name, value in mean.kept(parameters).items():
            value.copy_(tensors[f"mean.{name}"])
    optimizer.load_state_dict(_unpacked(rest, tensors))


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, its tensors put into ``tensors`` under dotted names."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(key): _packed(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TENSOR}:
        return tensors[value[_TENSOR]].clone()  # what is read from a file is a view of it
    # Optimizers number their parameters.
    return {int(key) if key.isdigit() else key: _unpacked(item, tensors) for key, item in value.items()}
