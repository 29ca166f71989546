"""What a step of LoRA training takes: what is computed again, batch, precision and optimizer."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, Self, get_args

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from reelora.adapters import LoraSpec
from reelora.catalog import ModelFacts
from reelora.lora import attach

from .choice import Choice, Row, gibibytes, pick
from .costs import Frame, denoiser_inputs
from .device import DeviceFacts
from .generation import OWN_BYTES, seconds_of
from .published import TRAINING
from .sizes import ModelSizes, RoleSize, skeleton
from .trace import Cost, trace

__all__ = ["Checkpointing", "Optimizer", "TrainingJob", "TrainingPlan", "plan_training"]

Checkpointing = Literal["none", "attention", "full"]
"""What a block keeps for the backward pass: everything; its inputs and what its attention gave; its inputs alone."""
Optimizer = Literal["adamw", "adamw8bit", "prodigy"]

_STATES: Mapping[Optimizer, int] = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
"""Bytes that an optimizer remembers of each trained number."""
_TRAINED_BYTES = 4
"""A trained number is float32; its gradient, as large, is among what a step makes."""
_FEW, _MORE = 2, 3
"""Blocks of a stack that are run; the others are counted by the difference."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What decides the memory and the time of a step; clips and captions are encoded before, by parts that are gone then."""

    num_frames: int
    height: int
    width: int
    batch_size: int = 1
    rank: int = 128
    optimizer: Optimizer = "adamw"
    dtype: torch.dtype | None = None
    """Of the frozen base; None is as stored."""
    has_mean: bool = False
    """Whether a running mean of the weights is kept."""

    @classmethod
    def for_model(cls, facts: ModelFacts, **settings: object) -> Self:
        """The given settings over the model's frames and size. Raises ConfigError for what the model cannot be shown."""
        size = {"num_frames": facts.default_frames, "height": facts.default_height, "width": facts.default_width}
        job = cls(**{**size, **settings})  # pyright: ignore[reportArgumentType]  (names are checked by the dataclass)
        facts.check_video(num_frames=job.num_frames, height=job.height, width=job.width)
        return job

    @property
    def frame(self) -> Frame:
        return self.num_frames, self.height, self.width

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.batch_size} x {self.num_frames} frames of {self.height}x{self.width} per step"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How a step is made."""

    checkpointing: Checkpointing
    optimizer: Optimizer
    batch_size: int
    precision: str

    @property
    def spelled(self) -> str:
        return f"{self.checkpointing},{self.optimizer},batch={self.batch_size},{self.precision}"

    def as_json(self) -> dict[str, Any]:
        """Plain values, by field."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{_SAID[self.checkpointing]}, {self.optimizer}, batch of {self.batch_size}, base in {self.precision}"


_SAID: Mapping[Checkpointing, str] = {
    "none": "blocks keep everything",
    "attention": "blocks keep their inputs and their attention's result",
    "full": "blocks keep their inputs alone",
}


def plan_training(model: ModelSizes, device: DeviceFacts, job: TrainingJob) -> Choice:
    """Weigh what blocks may keep, with the asked optimizer, and with its 8-bit form where nothing else fits.

    Predicted for diffusers' own blocks with the branches of `reelora.attach`: a step that keeps less takes less.
    """
    rows = [
        _row(model, device, job, kept, optimizer) for optimizer in _optimizers(job, device) for kept in get_args(Checkpointing)
    ]
    chosen = pick(rows)
    what = f"{model.name}, training: {job}"
    return Choice(what=what, device=device, rows=rows, chosen_row=chosen, notes=tuple(_notes(model, device, job, chosen)))


def step_cost(model: ModelSizes, job: TrainingJob, checkpointing: Checkpointing) -> Cost:
    """Forward and backward pass of one step, with the gradients of the trained weights."""
    size = model.denoiser
    config = json.dumps(dict(size.config), sort_keys=True, default=list)
    told = (size.role, size.class_name, config, model.facts, job.frame, job.batch_size, job.rank)
    return _step_cost(*told, job.dtype or size.dtype, checkpointing)


def trained_numbers(size: RoleSize, rank: int) -> int:
    """How many numbers an adapter of this rank has on the modules that CogVideo's own training takes."""
    spec = LoraSpec(rank=rank, alpha=rank)
    layers = [m for name, m in size.network.named_modules() if isinstance(m, nn.Linear) and name.endswith(spec.target_modules)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def _optimizers(job: TrainingJob, device: DeviceFacts) -> tuple[Optimizer, ...]:
    small: Optimizer = "adamw8bit"
    return (job.optimizer,) if device.is_host or job.optimizer == small else (job.optimizer, small)


def _row(model: ModelSizes, device: DeviceFacts, job: TrainingJob, kept: Checkpointing, optimizer: Optimizer) -> Row:
    size = model.denoiser
    dtype = job.dtype or size.dtype
    cost = step_cost(model, job, kept)
    number = trained_numbers(size, job.rank)
    held = _TRAINED_BYTES * (1 + job.has_mean) + _STATES[optimizer]
    peak = OWN_BYTES.get(device.kind, 0) + size.bytes_in(dtype) + held * number + cost.peak_bytes
    row = Row(
        plan=TrainingPlan(
            checkpointing=kept,
            optimizer=optimizer,
            batch_size=job.batch_size,
            precision=str(dtype).removeprefix("torch."),
        ),
        bytes_by_phase={"base": size.bytes_in(dtype), "adapter": held * number, "step": cost.peak_bytes, "peak": peak},
        host_bytes=size.bytes_in(dtype),
        seconds=seconds_of(cost, device.measured or device.rates, dtype),
        order=seconds_of(cost, device.rates, dtype),
        is_last_resort=optimizer != job.optimizer,
    )
    over = peak - device.usable_bytes
    return replace(row, why_not=f"a step takes {gibibytes(over)} too much" if over > 0 else "")


def _notes(model: ModelSizes, device: DeviceFacts, job: TrainingJob, chosen: Row) -> Iterator[str]:
    yield from model.notes
    room = device.usable_bytes - chosen.bytes_by_phase["peak"]
    one = chosen.bytes_by_phase["step"] // job.batch_size
    if chosen.fits and room > one:
        yield f"There is room for a batch of about {job.batch_size + room // one}, kept the same way."
    if not device.is_pretended and chosen.peak_bytes > device.free_bytes:
        yield f"Only {gibibytes(device.free_bytes)} of {device} are free now: end what holds the rest."
    if chosen.is_last_resort:
        yield "adamw8bit changes the numbers a little: nothing else fits. It needs bitsandbytes."
    if (job.dtype or model.denoiser.dtype) is torch.float16:
        yield "The base is published in float16, in which gradients underflow: train in bf16, which takes the same memory."
    yield from _met(model, device)


def _met(model: ModelSizes, device: DeviceFacts) -> Iterator[str]:
    """Whether what others publish for their setting holds here, by prediction."""
    if (figure := TRAINING.get(model.name)) is None:
        return
    job = TrainingJob(
        num_frames=figure.num_frames, height=figure.height, width=figure.width, rank=figure.rank, dtype=torch.bfloat16
    )
    taken = _row(model, device, job, "full", "adamw").bytes_by_phase["peak"] / 1e9
    verdict = "met" if taken <= figure.gigabytes else "NOT met"
    published = f"{figure.gigabytes:g} GB for {figure.setting} ({figure.source})"
    yield f"Published: {published}; predicted here: {taken:.1f} GB with blocks that keep their inputs alone: {verdict}."


@lru_cache
def _step_cost(
    role: str,
    class_name: str,
    config: str,
    facts: ModelFacts,
    frame: Frame,
    batch: int,
    rank: int,
    dtype: torch.dtype,
    checkpointing: Checkpointing,
) -> Cost:
    told = json.loads(config)

    def run(**changes: Any) -> Cost:
        built: Any = skeleton.__wrapped__(role, class_name, json.dumps({**told, **changes}))
        network = nn.Module.to(built, dtype)
        attach(network, LoraSpec(rank=rank, alpha=rank))
        _KEEP[checkpointing](network)
        network.train()
        return trace(lambda: _backward(network, denoiser_inputs(class_name, network.config, facts, frame, batch, dtype)))

    num_layers = told.get("num_layers")
    if num_layers is None or num_layers < _MORE:
        return run()
    first = run(num_layers=_FEW)
    return first.extended(run(num_layers=_MORE), num_layers - _FEW)


def _backward(network: Any, inputs: Mapping[str, Any]) -> None:
    """The gradients of a squared error, which stay with the parameters."""
    with torch.enable_grad():
        result = network(**inputs, return_dict=False)[0]
        loss = (result.float() - torch.empty_like(result, dtype=torch.float32)).square().mean()
        torch.autograd.backward(loss)


def _keep_all(network: Any) -> None:
    """As it is."""


def _keep_inputs(network: Any) -> None:
    network.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))


def _keep_attention(network: Any) -> None:
    contexts = partial(create_selective_checkpoint_contexts, _is_attention)
    network.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=contexts))


def _is_attention(context: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    return CheckpointPolicy.MUST_SAVE if operation is flash else CheckpointPolicy.PREFER_RECOMPUTE


_KEEP: Mapping[Checkpointing, Callable[[Any], None]] = {
    "none": _keep_all,
    "attention": _keep_attention,
    "full": _keep_inputs,
}
