"""One function per verb: what the command line calls."""

from .adapter_texts import read_adapters
from .adapters import Target, convert, diff, extract, merge, parse_size, read_one, resize
from .compare import diff_lines, diff_rows
from .config import AdapterConfig, DataConfig, PreviewConfig, TrainConfig
from .demo import DemoOutcome, DemoPlan, demo
from .doctor import Diagnosis, examine, examine_machine
from .files import write_new_text
from .fuse import FuseOutcome, fuse
from .generate import generate
from .inspect import Inspection, inspect, inspect_video, is_video
from .inspect_texts import fact_rows, inspection_page, strength_title, strengths, value_lines
from .listener import Listener, Silent
from .machine import Precision, check_precision
from .model import POCKET, find_model
from .precompute import precompute
from .texts import plain
from .train import TrainOutcome, train

__all__ = [
    "POCKET",
    "AdapterConfig",
    "DataConfig",
    "DemoOutcome",
    "DemoPlan",
    "Diagnosis",
    "FuseOutcome",
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
    "examine",
    "examine_machine",
    "extract",
    "fact_rows",
    "find_model",
    "fuse",
    "generate",
    "inspect",
    "inspect_video",
    "inspection_page",
    "is_video",
    "merge",
    "parse_size",
    "plain",
    "precompute",
    "read_adapters",
    "read_one",
    "resize",
    "strength_title",
    "strengths",
    "train",
    "value_lines",
    "write_new_text",
]
