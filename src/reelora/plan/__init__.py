"""What fits: peak memory and time of a job, from a model's configs, a device and the job alone."""

from .choice import Choice, Row
from .device import CARDS, DeviceFacts, Rates, device_facts, parse_bytes, pretended, spilled_bytes, with_memory
from .generation import Condition, GenerationJob, advice_after_oom, plan_generation, predict
from .plan import AUTO, Placement, Plan, parse_plan
from .sizes import ModelSizes, RoleSize, catalogued, sizes_of
from .training import TrainingJob, TrainingPlan, plan_training

__all__ = [
    "AUTO",
    "CARDS",
    "Choice",
    "Condition",
    "DeviceFacts",
    "GenerationJob",
    "ModelSizes",
    "Placement",
    "Plan",
    "Rates",
    "RoleSize",
    "Row",
    "TrainingJob",
    "TrainingPlan",
    "advice_after_oom",
    "catalogued",
    "device_facts",
    "parse_bytes",
    "parse_plan",
    "plan_generation",
    "plan_training",
    "predict",
    "pretended",
    "sizes_of",
    "spilled_bytes",
    "with_memory",
]
