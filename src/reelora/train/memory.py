"""How much memory a run has taken."""

import resource
import sys

import torch

__all__ = ["peak_memory_bytes"]

_UNIT = 1 if sys.platform == "darwin" else 1024
"""What the system counts in."""


def peak_memory_bytes(device: torch.device) -> int:
    """The most that tensors have taken on an accelerator; on a CPU the whole process, mapped files included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
