"""What holds named tensors whose shapes and dtypes are known before any of them is read."""

from typing import TypeAlias

from .checkpoint import CheckpointStore
from .deferred import DeferredStore
from .reader import TensorStore

__all__ = ["Tensors"]

Tensors: TypeAlias = TensorStore | CheckpointStore | DeferredStore
