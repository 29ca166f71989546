"""Learning: from cached clips to trained branches, the same numbers every time."""

from .batches import Prior
from .begin import begin_from
from .best import showing_best
from .boards import TensorBoard, weights_and_biases
from .budget import MemoryPlan
from .checkpoint import skipped_checkpoints
from .compiled import check_compiler, compiled_rows
from .conditioning import (
    Condition,
    EncodeImage,
    ImageCondition,
    PooledCondition,
    SizeCondition,
    StoredImageCondition,
    noisy_draws,
    noisy_image,
)
from .config import LoopConfig, OptimizerConfig, TimestepConfig
from .diffusion import Diffusion
from .disk import only_run_in
from .held_out import read_verdicts
from .lesson import Lesson, StepReport, TrainResult
from .loop import check_continues, check_team, train
from .practice import PRACTICE
from .predict import needed_extras
from .team import Team
from .timesteps import seen_shares
from .track import MakeBoard, read_metrics
from .verdict import Evaluation, Gain, Verdict, judge
from .weights import WEIGHTS, loss_weights
from .with_text import OF_TEXT_ENCODERS, TokenCondition, WithText, begin_all_from, collect_all

__all__ = [
    "OF_TEXT_ENCODERS",
    "PRACTICE",
    "WEIGHTS",
    "Condition",
    "Diffusion",
    "EncodeImage",
    "Evaluation",
    "Gain",
    "ImageCondition",
    "Lesson",
    "LoopConfig",
    "MakeBoard",
    "MemoryPlan",
    "OptimizerConfig",
    "PooledCondition",
    "Prior",
    "SizeCondition",
    "StepReport",
    "StoredImageCondition",
    "Team",
    "TensorBoard",
    "TimestepConfig",
    "TokenCondition",
    "TrainResult",
    "Verdict",
    "WithText",
    "begin_all_from",
    "begin_from",
    "check_compiler",
    "check_continues",
    "check_team",
    "collect_all",
    "compiled_rows",
    "judge",
    "loss_weights",
    "needed_extras",
    "noisy_draws",
    "noisy_image",
    "only_run_in",
    "read_metrics",
    "read_verdicts",
    "seen_shares",
    "showing_best",
    "skipped_checkpoints",
    "train",
    "weights_and_biases",
]
