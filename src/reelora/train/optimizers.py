"""Who makes the steps: one row per kind of optimizer, imported only when it is used."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from reelora.errors import ConfigError

from .config import OptimizerConfig, OptimizerKind

__all__ = ["by_rate", "make_optimizer"]

Parameters = Sequence[nn.Parameter] | Sequence[dict[str, Any]]
"""Themselves, or groups of them as torch's optimizers take them."""


def by_rate(named: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> dict[float, list[nn.Parameter]]:
    """Parameters by the factor of their learning rate: that of the first beginning of their name in ``rates``, otherwise 1."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        factor = next((rate for beginning, rate in rates.items() if name.startswith(beginning)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    return groups


def make_optimizer(config: OptimizerConfig, parameters: Parameters) -> Optimizer:
    """The optimizer of the settings over ``parameters``; ConfigError names the package that it lacks."""
    return _MAKERS[config.kind](parameters, config)


def _adamw(parameters: Parameters, config: OptimizerConfig) -> Optimizer:
    return torch.optim.AdamW(parameters, **_shared(config), fused=True)


def _adamw8bit(parameters: Parameters, config: OptimizerConfig) -> Optimizer:
    return _package("bitsandbytes", config).optim.AdamW8bit(parameters, **_shared(config))


def _prodigy(parameters: Parameters, config: OptimizerConfig) -> Optimizer:
    options = {**_shared(config), "use_bias_correction": True, "safeguard_warmup": config.warmup_steps > 0}
    return _package("prodigyopt", config).Prodigy(parameters, **options)


_MAKERS: Mapping[OptimizerKind, Callable[[Parameters, OptimizerConfig], Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
}


def _shared(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }


def _package(name: str, config: OptimizerConfig) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"loop.optimizer.kind {config.kind} needs the package {name}: pip install {name}") from error
