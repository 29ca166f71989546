"""A LoRA as data: what it is made of, how strong it is, and its file."""

from .adapter import ROLES, Adapter, FactorA, FactorB, Pair, Update, split_role
from .advice import Advice, share_of_layer
from .compare import largest_difference, relative_difference
from .producers import PRODUCERS, Producer
from .read import read_adapter
from .spec import ATTENTION_TARGETS, LoraSpec
from .write import write_adapter

__all__ = [
    "ATTENTION_TARGETS",
    "PRODUCERS",
    "ROLES",
    "Adapter",
    "Advice",
    "FactorA",
    "FactorB",
    "LoraSpec",
    "Pair",
    "Producer",
    "Update",
    "largest_difference",
    "read_adapter",
    "relative_difference",
    "share_of_layer",
    "split_role",
    "write_adapter",
]
