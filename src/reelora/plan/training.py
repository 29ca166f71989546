"""What a step of LoRA training takes: what its blocks keep, batch, precision and optimizer.

The step is rehearsed as a run rehearses it before it begins: the same blocks with the same branches in the same ways, and the
same choice among these. So a plan for a device says what a run will do there.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Generic, Literal

import torch
from torch import Tensor, nn

from reelora.adapters import LoraSpec
from reelora.catalog import ModelFacts
from reelora.lora import Shadows, Storage, attach, stored_base_bytes

from .choice import Choice, Row, gibibytes
from .costs import Frame, at_dtype, denoiser_batch
from .device import DeviceFacts
from .generation import OWN_BYTES, seconds_of
from .held import Held, Memory, Optimizer
from .job import VideoJob
from .keeping import choose, extra_work, peak_bytes, said, uniform
from .published import TRAINING
from .rehearsal import Name, Rehearsal, Way, fake_tensors, rehearse
from .sizes import ModelSizes, RoleSize
from .trace import Cost

__all__ = ["Practice", "TrainingJob", "TrainingPlan", "plan_training"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Practice(Generic[Name]):
    """How training runs a model, told by those who do."""

    ways_of: Callable[[nn.Module], Mapping[Name, Way]]
    """The ways in which a block can run, from the most memory to the least."""
    predictor_of: Callable[[nn.Module], Callable[..., Tensor]]
    """A denoiser as a function of noisy latents ``(b f c h w)``, prompt states ``(b s d)``, timesteps ``(b)`` and extras."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob(VideoJob):
    """What decides the memory and the time of a step; clips and captions are encoded before, by parts that are gone then."""

    batch_size: int = 1
    """Clips in a forward pass."""
    gradient_accumulation: int = 1
    """Forward passes in a step."""
    spec: LoraSpec = LoraSpec()  # noqa: RUF009  (frozen)
    optimizer: Optimizer = "adamw"
    dtype: torch.dtype | None = None
    """Of the frozen base; None is as stored."""
    storage: Storage = "precision"
    """What the weights of its blocks are kept as."""
    stream: bool = False
    """Whether these wait in the host's memory."""
    has_mean: bool = False
    """Whether a running mean of the weights is kept."""
    memory: Memory = "auto"
    """GiB that a step may take with all that it needs; ``auto`` is most of what is free."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Whether all blocks keep their inputs alone (True) or everything (False); ``auto`` is what fits into ``memory``."""

    @property
    def is_base_stored(self) -> bool:
        """Whether the base lies on the device in another way than as it is computed with."""
        return self.stream or self.storage != "precision"

    def __str__(self) -> str:
        return f"rank {self.spec.rank}, {self.batch_size} x {self.num_frames} frames of {self.height}x{self.width} per step"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How a step is made."""

    kept: Mapping[str, int]
    """How many blocks keep what."""
    optimizer: Optimizer
    batch_size: int
    precision: str
    extra_work: float = 0.0
    """Operations that are done again, as a share of a step that does none again."""

    @property
    def spelled(self) -> str:
        kept = "+".join(f"{count} {name}" for name, count in self.kept.items())
        return f"{kept},{self.optimizer},batch={self.batch_size},{self.precision}"

    def as_json(self) -> dict[str, Any]:
        """Plain values, by field."""
        return asdict(self)

    def __str__(self) -> str:
        kept = said(name for name, count in self.kept.items() for _ in range(count))
        work = f" ({self.extra_work:.0%} more work)" if self.extra_work >= 0.005 else ""
        return f"blocks: {kept}{work}; {self.optimizer}, batch of {self.batch_size}, base in {self.precision}"


def plan_training(model: ModelSizes, device: DeviceFacts, job: TrainingJob, practice: Practice[Any]) -> Choice:
    """What the blocks keep in a run on this device, beside all of them keeping the same; with the asked optimizer, and with its
    8-bit form where nothing else fits.

    ``practice`` is training's own. What blocks keep changes no number, so unlike in `plan_generation` what is free now decides.
    """
    rehearsal, network = _rehearsed(model, job, _place(device), practice)
    steps = [_Step(model, device, job, optimizer, network, rehearsal) for optimizer in _optimizers(job, device)]
    planned = [step.row(step.chosen(), is_planned=True) for step in steps]
    others = [step.row(uniform(rehearsal, way)) for step in steps for way in step.other_ways()]
    plans = [row.plan for row in planned]
    rows = sorted([*planned, *(row for row in others if row.plan not in plans)], key=_order)
    chosen = next((row for row in planned if row.fits), min(rows, key=lambda row: row.peak_bytes))
    notes = (*model.notes, *_notes(model, device, job, chosen, steps[0]), *_met(model, device, practice))
    return Choice(what=f"{model.name}, training: {job}", device=device, rows=rows, chosen_row=chosen, notes=notes)


def _order(row: Row) -> tuple[bool, int]:
    """Last resorts last, then from the most memory to the least."""
    return row.is_last_resort, -row.peak_bytes


class _Step(Generic[Name]):
    """A step with one optimizer, whatever the blocks keep."""

    def __init__(
        self,
        model: ModelSizes,
        device: DeviceFacts,
        job: TrainingJob,
        optimizer: Optimizer,
        network: nn.Module,
        rehearsal: Rehearsal[Name],
    ) -> None:
        self._device, self._job, self._rehearsal = device, job, rehearsal
        self._optimizer: Optimizer = optimizer
        self._dtype = job.dtype or model.denoiser.dtype
        loaded = Held.of(network, optimizer, has_mean=job.has_mean)
        self._host_bytes = loaded.base_bytes
        stored = stored_base_bytes(network, job.storage, stream=job.stream) if job.is_base_stored else loaded.base_bytes
        self._held = replace(loaded, base_bytes=stored)
        self._own = OWN_BYTES.get(device.kind, 0)
        self.budget = self._budget()

    def chosen(self) -> Mapping[nn.Module, Name]:
        """What a run lets its blocks keep."""
        if self._job.gradient_checkpointing != "auto":
            return uniform(self._rehearsal, -1 if self._job.gradient_checkpointing else 0)
        room = self.budget - self._held.total_bytes
        return choose(self._rehearsal, room, is_accumulating=self._job.gradient_accumulation > 1)

    def other_ways(self) -> range:
        """What is weighed beside: the places of the ways in which all blocks keep the same."""
        is_open = self._job.gradient_checkpointing == "auto"
        return range(max(map(len, self._rehearsal.blocks.values())) if is_open else 0)

    def row(self, chosen: Mapping[nn.Module, Name], *, is_planned: bool = False) -> Row:
        """What the step takes by that."""
        held, cost = self._held, _work(self._rehearsal, chosen)
        peak = peak_bytes(self._rehearsal, chosen, is_accumulating=self._job.gradient_accumulation > 1)
        step = max(held.update_bytes, peak)
        sizes = {"base": held.base_bytes, "adapter": held.adapter_bytes, "step": step}
        total = self._own + sum(sizes.values())
        order = list(chosen.values())
        return Row(
            plan=TrainingPlan(
                kept={name: count for name in _names(self._rehearsal) if (count := order.count(name))},
                optimizer=self._optimizer,
                batch_size=self._job.batch_size,
                precision=str(self._dtype).removeprefix("torch."),
                extra_work=extra_work(self._rehearsal, chosen),
            ),
            bytes_by_phase={**sizes, "peak": total},
            host_bytes=self._host_bytes,
            seconds=seconds_of(cost, self._device.measured or self._device.rates, self._dtype),
            order=seconds_of(cost, self._device.rates, self._dtype),
            why_not=self._why_not(total, is_planned=is_planned),
            is_last_resort=self._optimizer != self._job.optimizer,
        )

    def _budget(self) -> int:
        """As a run reckons it, whose base and adapter are loaded by then."""
        is_host, free = self._device.kind == "cpu", self._device.free_bytes
        left = free if is_host else max(0, free - self._held.base_bytes - self._held.loaded_bytes)
        return self._held.budget(self._job.memory, is_host=is_host, free_bytes=left)

    def _why_not(self, total: int, *, is_planned: bool) -> str:
        """A run that may take most of what is free begins even if the least that it can take is more."""
        is_bound = self._job.memory != "auto" or not is_planned
        room = min(self._device.usable_bytes, self._own + self.budget) if is_bound else self._device.usable_bytes
        return f"a step takes {gibibytes(total - room)} too much" if total > room else ""


def _names(rehearsal: Rehearsal[Name]) -> list[Name]:
    """All ways of blocks, from the most memory to the least."""
    return max(map(list, rehearsal.blocks.values()), key=len)


def _work(rehearsal: Rehearsal[Name], chosen: Mapping[nn.Module, Name]) -> Cost:
    """What a step computes; of what lies outside of the blocks the forward pass, for the other is no matter."""
    costs = [costs[chosen[block]] for block, costs in rehearsal.blocks.items()]
    flops = sum((Counter(cost.flops) for cost in costs), Counter(rehearsal.rest_flops))
    return Cost(flops=flops, calls=rehearsal.rest_calls + sum(cost.calls for cost in costs))


def _optimizers(job: TrainingJob, device: DeviceFacts) -> tuple[Optimizer, ...]:
    small: Optimizer = "adamw8bit"
    return (job.optimizer,) if device.is_host or job.optimizer == small else (job.optimizer, small)


def _notes(model: ModelSizes, device: DeviceFacts, job: TrainingJob, chosen: Row, step: _Step[Any]) -> Iterator[str]:
    if job.gradient_checkpointing == "auto":
        said_by = "auto" if job.memory == "auto" else f"{job.memory:g} GiB"
        yield f"Chosen to take at most {gibibytes(step.budget)} (loop.memory = {said_by})."
    if job.is_base_stored:
        how = f"base.storage = {job.storage}, base.stream = {str(job.stream).lower()}"
        sizes = f"{gibibytes(chosen.bytes_by_phase['base'])} on the device instead of {gibibytes(chosen.host_bytes)}"
        yield f"The base takes {sizes} ({how}). Seconds do not count what that costs."
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


def _met(model: ModelSizes, device: DeviceFacts, practice: Practice[Any]) -> Iterator[str]:
    """Whether what others publish for their setting holds here, by prediction."""
    if (figure := TRAINING.get(model.name)) is None:
        return
    num_frames, height, width = figure.num_frames, figure.height, figure.width
    spec = LoraSpec(rank=figure.rank)
    job = TrainingJob(num_frames=num_frames, height=height, width=width, spec=spec, dtype=torch.bfloat16)
    rehearsal, network = _rehearsed(model, job, _place(device), practice)
    least = _Step(model, device, job, "adamw", network, rehearsal).row(uniform(rehearsal, -1))
    taken = least.bytes_by_phase["peak"] / 1e9
    verdict = "met" if taken <= figure.gigabytes else "NOT met"
    published = f"{figure.gigabytes:g} GB for {figure.setting} ({figure.source})"
    yield f"Published: {published}; predicted here: {taken:.1f} GB with blocks that keep their inputs alone: {verdict}."


def _place(device: DeviceFacts) -> torch.device:
    """Where the tensors without memory say that they are: on the device, so that its kernels are chosen, if it is here.

    A device that this build of torch lacks cannot even be pretended to autograd; the kernels of a CPU keep the same tensors.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return here if here is not None and here.type == device.kind else _CPU


def _rehearsed(
    model: ModelSizes, job: TrainingJob, place: torch.device, practice: Practice[Name]
) -> tuple[Rehearsal[Name], nn.Module]:
    """The step of a job, and the network that it was rehearsed with."""
    size = model.denoiser
    config = json.dumps(dict(size.config), sort_keys=True, default=list)
    told = (size.role, size.class_name, config, job.dtype or size.dtype)
    return _rehearse_once(*told, model.facts, job.frame, job.batch_size, job.spec, place, practice)


@lru_cache(maxsize=8)
def _rehearse_once(
    role: str,
    class_name: str,
    config: str,
    dtype: torch.dtype,
    facts: ModelFacts,
    frame: Frame,
    batch_size: int,
    spec: LoraSpec,
    place: torch.device,
    practice: Practice[Any],
) -> tuple[Rehearsal[Any], nn.Module]:
    size = RoleSize(role=role, class_name=class_name, config=json.loads(config), dtype=dtype)
    network: Any = at_dtype(size, dtype)
    with fake_tensors():  # so that nothing is drawn
        attach(network, spec)
    _give_shapes(network, place)
    network.train()
    predict = practice.predictor_of(network)
    with fake_tensors(), Shadows(network).cast():
        batch = denoiser_batch(class_name, network.config, facts, frame, batch_size, place)
        return rehearse(network, lambda: predict(*batch), practice.ways_of), network


def _give_shapes(network: nn.Module, place: torch.device) -> None:
    """Put a tensor of its shape into the place of every weight, on the device; all share memory that nobody touches.

    They are no fake tensors, for a branch looks at what kind of tensor its weight is.
    """
    largest = Counter[torch.dtype]()
    for tensor in (*network.parameters(), *network.buffers()):
        largest[tensor.dtype] = max(largest[tensor.dtype], tensor.numel())
    rooms = {dtype: torch.empty(number, dtype=dtype, device=place) for dtype, number in largest.items()}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                shape = _part(rooms, parameter)
                module._parameters[name] = nn.Parameter(shape, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _part(rooms, buffer)


def _part(rooms: Mapping[torch.dtype, Tensor], like: Tensor) -> Tensor:
    return rooms[like.dtype][: like.numel()].view(like.shape)
