"""Content hashes of tensors and of shapes."""

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from .writer import raw_bytes

__all__ = ["fingerprint", "sampled_fingerprint", "shape_fingerprint"]

_PIECE_BYTES = 4096


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes, in the order of the names: equal exactly for equal content.

    Where a tensor lies (file, device, strides) does not matter. Every byte is read, one tensor at a time.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        # One JSON line says how many bytes follow it, so that no two different mappings give the same stream.
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def shape_fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256 in hex over names and shapes: what can be known of a model without reading its weights."""
    return hashlib.sha256(json.dumps(sorted((name, list(shape)) for name, shape in shapes.items())).encode()).hexdigest()


def sampled_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """As ``fingerprint``, from the first, middle and last 4 KiB of each tensor: tells models apart without reading gigabytes.

    Training, a cast or a merge changes nearly all values, so it never goes unseen; a single edited number might.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        content = raw_bytes(tensor)
        middle = len(content) // 2
        for start in sorted({0, max(0, middle - _PIECE_BYTES // 2), max(0, len(content) - _PIECE_BYTES)}):
            digest.update(content[start : start + _PIECE_BYTES])
    return digest.hexdigest()
