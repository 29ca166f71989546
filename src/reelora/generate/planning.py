"""The plan of every job of a session, worked out once for jobs of one kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from reelora.components import Bundle
from reelora.plan import (
    AUTO,
    Condition,
    DeviceFacts,
    GenerationJob,
    ModelSizes,
    Plan,
    advice_after_oom,
    device_facts,
    parse_plan,
    plan_generation,
    sizes_of,
)

from .jobs import Job
from .tasks import Task

__all__ = ["Asked", "Planner", "asked_plan"]

Asked = Plan | Literal["auto"]

_VAE_BYTES_PER_PIXEL = 8 * 1024
"""More than any VAE takes while it decodes, for each pixel of the frames that it works on at once."""
_FRAMES_AT_ONCE = 8
_VALUES_PER_TOKEN = 64
"""More than a block holds at once, for each token and channel."""
_BYTES_PER_VALUE = 4
_IN_FLOAT32, _BESIDE = 2, 2
"""How many times larger than their files weights can become: by a cast, and by adapters that are fused beside them."""


def asked_plan(plan: Plan | str) -> Asked:
    """A plan as it is given; ConfigError for words that are none."""
    return plan if isinstance(plan, Plan) else parse_plan(plan)


@dataclass(kw_only=True, eq=False)
class Planner:
    """The plan follows from the job, the model and the device, never from what else is in the queue."""

    described: Bundle
    """The model; it need not have any part."""
    asked: Asked
    device: torch.device
    dtype: torch.dtype | None
    _known: dict[GenerationJob, Plan] = field(default_factory=dict, init=False)

    def plan_of(self, job: Job) -> Plan:
        """What was asked for, or else the fastest that fits."""
        if isinstance(self.asked, Plan):
            return self.asked
        kind = self._kind(job)
        if kind not in self._known:
            self._known[kind] = Plan() if self._surely_fits(kind) else plan_generation(self._sizes, self._facts, kind).chosen
        return self._known[kind]

    def of_numbers(self, job: Job) -> dict[str, Any]:
        """What of the plan changes numbers, as fields of the job. Weights that come and go, or have 8 bits, keep branches."""
        plan = self.plan_of(job)
        odd = {name: value for name in ("fp8", "compile", "attention") if (value := getattr(plan, name)) not in (False, AUTO)}
        keeps_branches = plan.fp8 or plan.use_streams or plan.placement == "sequential"
        return {"tiles": plan.tiles, "changed_by_plan": odd, "is_fused": job.is_fused and not keeps_branches}

    def advice(self, job: Job) -> str:
        """What to do when the memory did not suffice."""
        return advice_after_oom(self._sizes, self._facts, self._kind(job), self.plan_of(job))

    @cached_property
    def _sizes(self) -> ModelSizes:
        return sizes_of(self.described)

    @cached_property
    def _facts(self) -> DeviceFacts:
        return device_facts(self.device)

    def _kind(self, job: Job) -> GenerationJob:
        return GenerationJob(
            num_frames=job.config.num_frames,
            height=job.config.height,
            width=job.config.width,
            steps=job.num_steps,
            is_guided=job.config.is_guided,
            batch_size=job.config.batch_size,
            dtype=self.dtype,
            condition=_CONDITION.get(job.task, ""),
            adapter_rank=sum(max(pair.rank for pair in use.adapter.pairs.values()) for use in job.uses),
            is_fused=job.is_fused,
        )

    def _surely_fits(self, kind: GenerationJob) -> bool:
        """Whether a CPU has so much room that nothing needs to be worked out: everything resident is the fastest there."""
        stored = [size.stored_bytes for size in self._sizes.roles.values()]
        if not self._facts.is_host or None in stored:
            return False
        pixels = kind.height * kind.width
        vae = _VAE_BYTES_PER_PIXEL * pixels * min(kind.num_frames, _FRAMES_AT_ONCE)
        tokens = self.described.facts.num_tokens(num_frames=kind.num_frames, height=kind.height, width=kind.width)
        values = tokens * 2 * kind.batch_size * _width(self._sizes.denoiser.config) * _VALUES_PER_TOKEN
        weights = _IN_FLOAT32 * _BESIDE * sum(size or 0 for size in stored)
        return weights + vae + values * _BYTES_PER_VALUE < self._facts.usable_bytes


def _width(config: Mapping[str, Any]) -> int:
    """Channels of a denoiser where it is widest."""
    stages = config.get("block_out_channels") or (config["num_attention_heads"] * config["attention_head_dim"],)
    return max(stages)


_CONDITION: Mapping[Task, Condition] = {"image-to-video": "image", "video-to-video": "video"}
