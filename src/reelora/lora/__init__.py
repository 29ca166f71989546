"""A LoRA on a model: the only room that edits modules."""

from .attach import attach, collect, detach, load_into
from .backends import use_attention
from .base import base_fingerprints, base_notes
from .branch import TrainableLinear, is_hooked
from .home import free_bytes
from .kernel import FUSABLE, PairUses, dense_update, fuse_into, fused_rows, lost_share, sample_rows
from .model import models_of, role_of, target_linears
from .modes import evaluating
from .rack import Rack
from .remaking import Remaking
from .rounding import check_rounding, noise_of
from .stacked import StackedLinear
from .state import AdapterState, RackState
from .strengths import Strength
from .summary import AttachSummary
from .together import Shadows, roads
from .using import using

__all__ = [
    "FUSABLE",
    "AdapterState",
    "AttachSummary",
    "PairUses",
    "Rack",
    "RackState",
    "Remaking",
    "Shadows",
    "StackedLinear",
    "Strength",
    "TrainableLinear",
    "attach",
    "base_fingerprints",
    "base_notes",
    "check_rounding",
    "collect",
    "dense_update",
    "detach",
    "evaluating",
    "free_bytes",
    "fuse_into",
    "fused_rows",
    "is_hooked",
    "load_into",
    "lost_share",
    "models_of",
    "noise_of",
    "roads",
    "role_of",
    "sample_rows",
    "target_linears",
    "use_attention",
    "using",
]
