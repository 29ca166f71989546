"""Content hashes of tensors and of shapes."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from .writer import raw_bytes

__all__ = ["fingerprint", "sampled_fingerprint", "shape_fingerprint", "value_fingerprint"]

_PIECE_BYTES = 4096
_SAMPLED_BYTES = 1_000_000
"""At most this much of a whole model is read to tell its values."""


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


def value_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over one run of values from the middle of each tensor, as bfloat16: a megabyte tells any training apart.

    Equal for equal values in any order of names, in any file, and in any precision that bfloat16 rounds alike.
    """
    digest = hashlib.sha256()
    length = max(1, _SAMPLED_BYTES // (4 * max(1, len(tensors))))
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1)
        start = max(0, (len(flat) - length) // 2)
        run = flat[start : start + length]
        digest.update(json.dumps([name, len(flat)]).encode() + b"\n")
        digest.update(raw_bytes(run.to(torch.bfloat16) if run.is_floating_point() else run))
    return digest.hexdigest()
