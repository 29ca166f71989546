"""A LoRA on a model: the only room that edits modules."""

from .attach import attach, collect, detach, load_into
from .base import base_fingerprints, base_notes
from .branch import TrainableLinear
from .kernel import FUSABLE, PairUses, dense_update, fuse_into, fused_rows, lost_share, sample_rows
from .model import role_of, target_linears
from .modes import evaluating
from .rack import Rack
from .stacked import StackedLinear
from .state import AdapterState, RackState
from .strengths import Strength
from .summary import AttachSummary
from .using import using

__all__ = [
    "FUSABLE",
    "AdapterState",
    "AttachSummary",
    "PairUses",
    "Rack",
    "RackState",
    "StackedLinear",
    "Strength",
    "TrainableLinear",
    "attach",
    "base_fingerprints",
    "base_notes",
    "collect",
    "dense_update",
    "detach",
    "evaluating",
    "fuse_into",
    "fused_rows",
    "load_into",
    "lost_share",
    "role_of",
    "sample_rows",
    "target_linears",
    "using",
]
