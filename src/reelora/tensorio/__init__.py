"""Bytes: named tensors on disk, mapped when read and renamed into place when written."""

from .atomic import atomic_path
from .fingerprint import fingerprint, sampled_fingerprint, shape_fingerprint
from .reader import TensorStore, open_tensors
from .writer import write_tensors

__all__ = [
    "TensorStore",
    "atomic_path",
    "fingerprint",
    "open_tensors",
    "sampled_fingerprint",
    "shape_fingerprint",
    "write_tensors",
]
