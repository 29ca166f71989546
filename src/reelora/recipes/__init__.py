"""One function per verb: what the command line calls."""

from .config import AdapterConfig, DataConfig, PreviewConfig, TrainConfig
from .demo import DemoOutcome, DemoPlan, demo
from .files import write_new_text
from .generate import generate, read_adapters
from .inspect import inspect
from .listener import Listener, Silent
from .machine import Precision, check_precision
from .model import POCKET, find_model
from .precompute import precompute
from .train import TrainOutcome, train

__all__ = [
    "POCKET",
    "AdapterConfig",
    "DataConfig",
    "DemoOutcome",
    "DemoPlan",
    "Listener",
    "Precision",
    "PreviewConfig",
    "Silent",
    "TrainConfig",
    "TrainOutcome",
    "check_precision",
    "demo",
    "find_model",
    "generate",
    "inspect",
    "precompute",
    "read_adapters",
    "train",
    "write_new_text",
]
