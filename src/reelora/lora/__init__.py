"""A LoRA on a model: the only room that edits modules."""

from .attach import attach, collect, detach, load_into
from .base import base_fingerprints, base_notes
from .branch import StackedLinear, TrainableLinear
from .model import role_of, target_linears
from .modes import evaluating
from .summary import AttachSummary
from .using import using

__all__ = [
    "AttachSummary",
    "StackedLinear",
    "TrainableLinear",
    "attach",
    "base_fingerprints",
    "base_notes",
    "collect",
    "detach",
    "evaluating",
    "load_into",
    "role_of",
    "target_linears",
    "using",
]
