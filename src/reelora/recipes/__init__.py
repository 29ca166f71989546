"""One function per verb: what the command line calls."""

from .adapter_texts import read_adapters
from .adapters import Target, convert, diff, extract, merge, parse_size, read_one, resize
from .compare import diff_lines, diff_rows
from .config import AdapterConfig, DataConfig, PreviewConfig, TrainConfig
from .demo import DemoOutcome, DemoPlan, demo
from .files import write_new_text
from .generate import generate
from .inspect import Inspection, inspect, inspect_video, inspection_page, is_video, strengths
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
    "Inspection",
    "Listener",
    "Precision",
    "PreviewConfig",
    "Silent",
    "Target",
    "TrainConfig",
    "TrainOutcome",
    "check_precision",
    "convert",
    "demo",
    "diff",
    "diff_lines",
    "diff_rows",
    "extract",
    "find_model",
    "generate",
    "inspect",
    "inspect_video",
    "inspection_page",
    "is_video",
    "merge",
    "parse_size",
    "precompute",
    "read_adapters",
    "read_one",
    "resize",
    "strengths",
    "train",
    "write_new_text",
]
