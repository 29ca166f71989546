"""A LoRA on a model: the only room that edits modules."""

from .attach import attach, collect, detach, load_into
from .backends import use_attention
from .base import base_fingerprints, base_notes
from .branch import TrainableLinear, is_hooked
from .frozen import FrozenLinear
from .home import free_bytes
from .kernel import FUSABLE, PairUses, dense_update, fuse_into, fused_rows, lost_share, sample_rows
from .model import models_of, role_of, target_linears
from .modes import evaluating
from .rack import Rack
from .remaking import Remaking
from .rounding import check_rounding, noise_of
from .sharded import held_base_bytes, is_sharded, shard_base, sharded_base_bytes
from .stacked import StackedLinear
from .state import AdapterState, RackState
from .storage import Storage, check_storage
from .stored import StoredBase, base_bytes, store_base, stored_base_bytes
from .strengths import Strength
from .summary import AttachSummary
from .together import Shadows, roads
from .using import using

__all__ = [
    "FUSABLE",
    "AdapterState",
    "AttachSummary",
    "FrozenLinear",
    "PairUses",
    "Rack",
    "RackState",
    "Remaking",
    "Shadows",
    "StackedLinear",
    "Storage",
    "StoredBase",
    "Strength",
    "TrainableLinear",
    "attach",
    "base_bytes",
    "base_fingerprints",
    "base_notes",
    "check_rounding",
    "check_storage",
    "collect",
    "dense_update",
    "detach",
    "evaluating",
    "free_bytes",
    "fuse_into",
    "fused_rows",
    "held_base_bytes",
    "is_hooked",
    "is_sharded",
    "load_into",
    "lost_share",
    "models_of",
    "noise_of",
    "roads",
    "role_of",
    "sample_rows",
    "shard_base",
    "sharded_base_bytes",
    "store_base",
    "stored_base_bytes",
    "target_linears",
    "use_attention",
    "using",
]
