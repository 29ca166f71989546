"""What fits: peak memory and time of a job, from a model's configs, a device and the job alone."""

from .choice import Choice, Row, gibibytes
from .device import CARDS, DeviceFacts, Rates, device_facts, parse_bytes, pretended, spilled_bytes, with_memory
from .generation import Condition, GenerationJob, advice_after_oom, plan_generation, predict
from .held import Held
from .keeping import choose, extra_work, peak_bytes, said, uniform
from .plan import AUTO, Placement, Plan, parse_plan
from .rehearsal import BlockCost, Rehearsal, rehearse
from .sizes import ModelSizes, RoleSize, catalogued, sizes_of
from .training import Practice, TrainingJob, TrainingPlan, plan_training

__all__ = [
    "AUTO",
    "CARDS",
    "BlockCost",
    "Choice",
    "Condition",
    "DeviceFacts",
    "GenerationJob",
    "Held",
    "ModelSizes",
    "Placement",
    "Plan",
    "Practice",
    "Rates",
    "Rehearsal",
    "RoleSize",
    "Row",
    "TrainingJob",
    "TrainingPlan",
    "advice_after_oom",
    "catalogued",
    "choose",
    "device_facts",
    "extra_work",
    "gibibytes",
    "parse_bytes",
    "parse_plan",
    "peak_bytes",
    "plan_generation",
    "plan_training",
    "predict",
    "pretended",
    "rehearse",
    "said",
    "sizes_of",
    "spilled_bytes",
    "uniform",
    "with_memory",
]
