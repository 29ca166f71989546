"""Figures that others have published for the same work, to be met."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["TRAINING", "Published"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Memory of one GPU for one setting."""

    gigabytes: float
    """Decimal."""
    num_frames: int
    height: int
    width: int
    rank: int = 128
    source: str = "CogVideo, finetune/README.md"

    @property
    def setting(self) -> str:
        return f"rank {self.rank} at {self.num_frames}x{self.height}x{self.width}"


def _small(gigabytes: float) -> Published:
    return Published(gigabytes=gigabytes, num_frames=49, height=480, width=720)


def _large(gigabytes: float) -> Published:
    return Published(gigabytes=gigabytes, num_frames=81, height=768, width=1360)


TRAINING: Mapping[str, Published] = MappingProxyType(
    {
        "CogVideoX-2B": _small(16),
        "CogVideoX-5B": _small(24),
        "CogVideoX-5B-I2V": _small(24),
        "CogVideoX1.5-5B": _large(35),
        "CogVideoX1.5-5B-I2V": _large(35),
    }
)
"""LoRA training with one clip per step, by the name of the model."""
