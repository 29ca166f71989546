"""``fuse``: adapters added into the weights of a model on disk, without building the model."""

from .run import FuseOutcome, fuse

__all__ = ["FuseOutcome", "fuse"]
