"""Random numbers that depend on nothing but what they are for."""

import hashlib

import torch
from torch import Tensor

__all__ = ["draw_noise", "generator_for", "seed_for"]


def seed_for(*parts: object) -> int:
    """A seed of 63 bits, the hash of ``parts``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """A generator seeded by the hash of ``parts``, so that what it draws depends on nothing else."""
    return torch.Generator().manual_seed(seed_for(*parts))


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise drawn on the CPU, so that one seed means the same noise on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)
