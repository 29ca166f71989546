"""``checkpoint``: a whole model from SAT to diffusers and back, without building it."""

from .run import CheckpointOutcome, convert_checkpoint

__all__ = ["CheckpointOutcome", "convert_checkpoint"]
