"""Whether adapters are worth adding into the weights for one video."""

from reelora.catalog import ModelFacts

from .config import GenerateConfig
from .tasks import Task

__all__ = ["is_fused"]

_BREAK_EVEN = 960
"""Tokens through the network after which fusing has cost less than branches: one product of B and A for each weight, against
two thin ones for each token."""
_MARGIN = 4
"""How much more it has to be: the fused weights take memory, and restoring and fusing anew belong to it."""


def is_fused(config: GenerateConfig, facts: ModelFacts, task: Task) -> bool:
    """As the settings say; by themselves for long work. It follows from the video alone: its bytes depend on it."""
    if config.adapters_as != "auto":
        return config.adapters_as == "fused"
    passes = config.num_steps(task) * (2 if config.is_guided else 1)
    return passes * facts.num_tokens(**config.size) > _MARGIN * _BREAK_EVEN
