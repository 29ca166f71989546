"""One function per verb: what the command line calls."""

from .adapter_texts import read_adapters
from .adapters import Target, convert, diff, extract, merge, parse_size, read_one, resize
from .cache import list_cache, list_lines, prune_cache, pruning_lines, verify_files
from .checkpoint import CheckpointOutcome, convert_checkpoint
from .compare import diff_lines, diff_rows
from .conditions import precompute_kind
from .config import AdapterConfig, BaseConfig, DataConfig, PreviewConfig, TrainConfig
from .data_sheet import check_sheet, write_sheet
from .demo import DemoOutcome, DemoPlan, demo
from .doctor import Diagnosis, examine, examine_machine
from .files import check_new, write_new_text
from .fuse import FuseOutcome, fuse
from .generate import GenerateOutcome, Place, Saving, Wishes, check_codec, generate
from .inspect import Inspection, inspect
from .inspect_texts import fact_rows, inspection_page, strength_title, strengths, value_lines
from .inspect_video import VideoInspection, inspect_video, is_video
from .listener import Listener, Silent
from .machine import Precision, check_precision, find_device
from .model import POCKET, find_model
from .plan import plan_job, plan_run
from .precompute import DataPlan, plan_data, precompute, precompute_plan
from .texts import plain
from .timesteps import write_timesteps_page
from .train import TrainOutcome, train

__all__ = [
    "POCKET",
    "AdapterConfig",
    "BaseConfig",
    "CheckpointOutcome",
    "DataConfig",
    "DataPlan",
    "DemoOutcome",
    "DemoPlan",
    "Diagnosis",
    "FuseOutcome",
    "GenerateOutcome",
    "Inspection",
    "Listener",
    "Place",
    "Precision",
    "PreviewConfig",
    "Saving",
    "Silent",
    "Target",
    "TrainConfig",
    "TrainOutcome",
    "VideoInspection",
    "Wishes",
    "check_codec",
    "check_new",
    "check_precision",
    "check_sheet",
    "convert",
    "convert_checkpoint",
    "demo",
    "diff",
    "diff_lines",
    "diff_rows",
    "examine",
    "examine_machine",
    "extract",
    "fact_rows",
    "find_device",
    "find_model",
    "fuse",
    "generate",
    "inspect",
    "inspect_video",
    "inspection_page",
    "is_video",
    "list_cache",
    "list_lines",
    "merge",
    "parse_size",
    "plain",
    "plan_data",
    "plan_job",
    "plan_run",
    "precompute",
    "precompute_kind",
    "precompute_plan",
    "prune_cache",
    "pruning_lines",
    "read_adapters",
    "read_one",
    "resize",
    "strength_title",
    "strengths",
    "train",
    "value_lines",
    "verify_files",
    "write_new_text",
    "write_sheet",
    "write_timesteps_page",
]
