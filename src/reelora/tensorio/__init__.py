"""Bytes: named tensors on disk, mapped when read and renamed into place when written."""

from .atomic import atomic_folder, atomic_path
from .checkpoint import CheckpointStore, open_checkpoint
from .checkpoint_writer import write_checkpoint
from .deferred import DeferredStore, DeferredTensor, cat_apart, empty_apart
from .fingerprint import fingerprint, sampled_fingerprint, shape_fingerprint, value_fingerprint
from .hashes import webui_hashes
from .header import is_text, parse_json, shown
from .paths import expanded
from .reader import TensorStore, open_tensors
from .rewrite import copy_file, rewrite_tensors, same_bytes
from .sat import SAT_TRACKER, read_iteration, read_sat_yaml
from .stores import Tensors
from .text import read_json
from .writer import write_tensors

__all__ = [
    "SAT_TRACKER",
    "CheckpointStore",
    "DeferredStore",
    "DeferredTensor",
    "TensorStore",
    "Tensors",
    "atomic_folder",
    "atomic_path",
    "cat_apart",
    "copy_file",
    "empty_apart",
    "expanded",
    "fingerprint",
    "is_text",
    "open_checkpoint",
    "open_tensors",
    "parse_json",
    "read_iteration",
    "read_json",
    "read_sat_yaml",
    "rewrite_tensors",
    "same_bytes",
    "sampled_fingerprint",
    "shape_fingerprint",
    "shown",
    "value_fingerprint",
    "webui_hashes",
    "write_checkpoint",
    "write_tensors",
]
