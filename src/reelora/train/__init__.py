"""Learning: from cached clips to trained branches, the same numbers every time."""

from .config import LoopConfig, OptimizerConfig
from .diffusion import Diffusion
from .loop import Lesson, StepReport, TrainResult, train
from .track import read_metrics

__all__ = [
    "Diffusion",
    "Lesson",
    "LoopConfig",
    "OptimizerConfig",
    "StepReport",
    "TrainResult",
    "read_metrics",
    "train",
]
