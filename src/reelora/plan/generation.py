"""How a video is best made on a device: every way that there is, what it takes, and the fastest that fits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch

from reelora.catalog import ModelFacts
from reelora.errors import ConfigError

from .choice import AS_FAST, Choice, Row, gibibytes, pick
from .costs import decode_cost, denoise_cost, encode_cost, fits_a_tile, text_cost
from .device import GIB, DeviceFacts, Rates
from .job import VideoJob
from .plan import Placement, Plan
from .sizes import ModelSizes, RoleSize
from .trace import Cost
from .weights import adapter_bytes, encoder_bytes, on_device

__all__ = ["Condition", "GenerationJob", "advice_after_oom", "plan_generation", "predict", "seconds_of"]

Condition = Literal["", "image", "video"]

OWN_BYTES: Mapping[str, int] = {"cpu": 44 * 2**20}
"""What the libraries take for themselves at first use, by kind of device: pages of torch's and oneDNN's code, and what oneDNN
generates. Measured. A CUDA context is reckoned by `DeviceFacts.usable_bytes`."""
_LATENT_COPIES, _FLOAT32 = 8, 4
"""Latents that pipeline and solver hold at once, in float32."""
_PIXEL_BYTES = 13
"""Bytes for each number of a decoded video while it becomes 8-bit frames: as decoded, thrice in float32 and once as bytes."""
_COMPILE_SECONDS, _COMPILE_SAVES = 40.0, 0.1
"""Compiling one block, and the least that trainers report it to save of a step (10.5 to 25 %). Source: musubi-tuner,
docs/torch_compile.md."""
_LAYER_BY_LAYER = 3.0
"""How many times slower many small copies are than large ones."""
_HOST_SHARE = 0.9
_WORTH_TILES = 0.05
"""Share of the device that decoding a whole frame takes, below which tiles save nothing that anybody needs."""


@dataclass(frozen=True, kw_only=True)
class GenerationJob(VideoJob):
    """What decides the memory and the time of making videos; the model's defaults by ``for_model``.

    Raises ConfigError for numbers that no job has.
    """

    steps: int
    is_guided: bool = True
    """Whether the two halves of guidance go through the denoiser as one batch."""
    batch_size: int = 1
    dtype: torch.dtype | None = None
    """Of all parts; None is as stored."""
    condition: Condition = ""
    """What else goes through the VAE."""
    adapter_rank: int = 0
    """Sum of the ranks that act at once."""
    is_fused: bool = False

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "adapter_rank": 0}
        given = {name: getattr(self, name) for name in least}
        wrong = [
            f"{name} is {value}, it must be at least {least[name]}" for name, value in given.items() if value < least[name]
        ]
        if wrong:
            raise ConfigError(f"These videos cannot be made: {'; '.join(wrong)}.")

    @classmethod
    def defaults(cls, facts: ModelFacts) -> Mapping[str, object]:
        """What the model says where nobody else does, by field."""
        return {
            **super().defaults(facts),
            "steps": facts.default_steps,
            "is_guided": facts.default_guidance > 1,
            "condition": "image" if facts.needs_image else "",
        }

    def __str__(self) -> str:
        batch = f", {self.batch_size} at once" if self.batch_size > 1 else ""
        how = "fused" if self.is_fused else "as branches"
        rank = f", adapters of rank {self.adapter_rank} {how}" if self.adapter_rank else ""
        return f"{self.num_frames} frames of {self.height}x{self.width} in {self.steps} steps{batch}{rank}"


def plan_generation(model: ModelSizes, device: DeviceFacts, job: GenerationJob) -> Choice:
    """Weigh every plan against the device's total memory, and choose the fastest that fits.

    The same job on the same model and device always gets the same plan, whatever else runs or waits: free memory is only
    spoken of. fp8 is for jobs that nothing else fits, compiling for those on an accelerator that it saves more than it costs.
    """
    phases = _Phases(model, job)
    rows = [_row(phases, device, plan) for plan in _candidates(phases, device)]
    chosen = pick(rows)
    if chosen.fits and _pays_to_compile(phases, device, chosen):
        compiled = _row(phases, device, replace(chosen.plan, compile=True))
        rows.insert(rows.index(chosen), compiled)
        chosen = compiled
    what = f"{model.name}: {job}"
    return Choice(what=what, device=device, rows=rows, chosen_row=chosen, notes=tuple(_notes(model, device, job, chosen)))


def predict(model: ModelSizes, device: DeviceFacts, job: GenerationJob, plan: Plan) -> Row:
    """What one plan takes."""
    return _row(_Phases(model, job), device, plan)


def advice_after_oom(model: ModelSizes, device: DeviceFacts, job: GenerationJob, plan: Plan) -> str:
    """What to tell someone whose job ran out of memory: what was predicted, and the plan that fits and how to ask for it."""
    phases = _Phases(model, job)
    failed = _row(phases, device, plan)
    rows = [_row(phases, device, other) for other in _candidates(phases, device)]
    smaller = [row for row in rows if row.peak_bytes < failed.peak_bytes]
    told = (
        f"{job} with the plan {plan.spelled!r} takes about {gibibytes(failed.peak_bytes)} by prediction; {device} has "
        f"{gibibytes(device.total_bytes)}, of which {gibibytes(device.free_bytes)} were free."
    )
    if not smaller or not pick(smaller).fits:
        return f"{told} No plan fits: use fewer frames, a smaller size or a smaller batch."
    better = pick(smaller)
    return (
        f"{told} The plan {better.plan.spelled!r} ({better.plan}) takes about {gibibytes(better.peak_bytes)}: ask for it with "
        f"--plan {better.plan.spelled}, in Python Session(..., plan={better.plan.spelled!r})."
    )


class _Phases:
    """The costs of one job, each found out once and only if it is asked for."""

    def __init__(self, model: ModelSizes, job: GenerationJob) -> None:
        self.model, self.job = model, job
        self.dtype = job.dtype or model.denoiser.dtype

    def dtype_of(self, size: RoleSize) -> torch.dtype:
        return self.job.dtype or size.dtype

    @cached_property
    def encode(self) -> Cost:
        """Prompts, one at a time."""
        costs = [text_cost(size, self.model.facts, self.dtype_of(size)) for size in self.model.text_encoders]
        return max(costs, key=lambda cost: cost.peak_bytes, default=Cost())

    @cached_property
    def denoise(self) -> Cost:
        """One step."""
        batch = self.job.batch_size * (1 + self.job.is_guided)
        return denoise_cost(self.model.denoiser, self.model.facts, self.job.frame, batch=batch, dtype=self.dtype)

    def decode(self, *, tiles: bool) -> Cost:
        vae = self.model.vae
        return decode_cost(vae, self.model.facts, self.job.frame, dtype=self.dtype_of(vae), tiles=tiles) if vae else Cost()

    def condition(self, *, tiles: bool) -> Cost:
        """The picture or clip that is given besides the prompt."""
        vae = self.model.vae
        if not self.job.condition or vae is None:
            return Cost()
        frames = 1 if self.job.condition == "image" else self.job.num_frames
        frame = (frames, self.job.height, self.job.width)
        return encode_cost(vae, self.model.facts, frame, dtype=self.dtype_of(vae), tiles=tiles)

    @cached_property
    def latent_bytes(self) -> int:
        facts, job = self.model.facts, self.job
        size = (job.height // facts.spatial_stride) * (job.width // facts.spatial_stride)
        numbers = job.batch_size * facts.latent_channels * facts.padded_latent_frames(job.num_frames) * size
        return numbers * _LATENT_COPIES * _FLOAT32

    @property
    def num_pixels(self) -> int:
        """Numbers of one decoded video."""
        return 3 * self.job.num_frames * self.job.height * self.job.width

    @property
    def can_tile(self) -> bool:
        return self.model.vae is not None and not fits_a_tile(self.model.vae, self.job.frame)


def _candidates(phases: _Phases, device: DeviceFacts) -> Iterator[Plan]:
    """All plans that could make sense: those that change no numbers first, and of each kind the plainest first."""
    placements = ("resident", "model") if device.is_host else get_args(Placement)
    whole = phases.decode(tiles=False).peak_bytes
    may_tile = phases.can_tile and whole > _WORTH_TILES * device.usable_bytes
    for fp8 in (False, True):
        for tiles in (False, True) if may_tile else (False,):
            for placement in placements:
                streams = placement == "group" and device.has_streams
                yield Plan(placement=placement, use_streams=streams, tiles=tiles, fp8=fp8)


def _row(phases: _Phases, device: DeviceFacts, plan: Plan) -> Row:
    sizes = _bytes(phases, device, plan)
    host = _host_bytes(phases, device, plan)
    row = Row(
        plan=plan,
        bytes_by_phase=sizes,
        host_bytes=host,
        seconds=_seconds(phases, device.measured or device.rates, plan),
        order=_seconds(phases, device.rates, plan),
        is_last_resort=plan.fp8,
    )
    return replace(row, why_not=_why_not(row, device))


def _why_not(row: Row, device: DeviceFacts) -> str:
    room, host_room = device.usable_bytes, int(_HOST_SHARE * device.host_bytes)
    if row.peak_bytes > room:
        phase = max(row.bytes_by_phase, key=lambda name: row.bytes_by_phase[name])
        return f"{phase} takes {gibibytes(row.peak_bytes - room)} too much"
    if row.host_bytes > host_room:
        return f"it would spill to the disk: {gibibytes(row.host_bytes)} on a host of {gibibytes(device.host_bytes)}"
    return ""


def _bytes(phases: _Phases, device: DeviceFacts, plan: Plan) -> dict[str, int]:
    """At the peak of every phase on the device."""
    job, model = phases.job, phases.model
    own = OWN_BYTES.get(device.kind, 0)
    text = sum(_weights(phases, size, plan) for size in model.text_encoders)
    denoiser = _weights(phases, model.denoiser, plan)
    denoiser += adapter_bytes(model.denoiser, job.adapter_rank, dtype=phases.dtype, is_fused=job.is_fused)
    vae = _weights(phases, model.vae, plan) if model.vae else 0
    if model.vae and device.is_host and not job.condition and not _casts(phases):
        vae -= encoder_bytes(model.vae)  # pages of a mapped file that nobody reads
    held = _HELD["host" if device.is_host else "device"][plan.placement](text, denoiser, vae, _casts(phases))
    decode = max(phases.decode(tiles=plan.tiles).peak_bytes, _PIXEL_BYTES * phases.num_pixels if device.is_host else 0)
    worked = {
        "encode": max(phases.encode.peak_bytes, phases.condition(tiles=plan.tiles).peak_bytes),
        "denoise": phases.denoise.peak_bytes + phases.latent_bytes,
        "decode": decode,
    }
    return {phase: own + held[phase] + work for phase, work in worked.items()}


def _weights(phases: _Phases, size: RoleSize, plan: Plan) -> int:
    is_denoiser = size is phases.model.denoiser
    told = {"dtype": phases.dtype_of(size), "fp8": plan.fp8 and is_denoiser, "ahead": plan.use_streams}
    return on_device(size, plan.placement, **told)


def _casts(phases: _Phases) -> bool:
    """Whether loading copies weights: then they take memory from the start, not from their first use."""
    return any(size.is_cast(phases.job.dtype) for size in phases.model.roles.values())


Held = Callable[[int, int, int, bool], Mapping[str, int]]


def _together(text: int, denoiser: int, vae: int, is_cast: bool) -> Mapping[str, int]:
    return dict.fromkeys(("encode", "denoise", "decode"), text + denoiser + vae)


def _in_turn(text: int, denoiser: int, vae: int, is_cast: bool) -> Mapping[str, int]:
    return {"encode": max(text, vae), "denoise": denoiser, "decode": vae}


def _mapped(text: int, denoiser: int, vae: int, is_cast: bool) -> Mapping[str, int]:
    """Pages of a mapped file count from their first use on; copies from the start."""
    if is_cast:
        return _together(text, denoiser, vae, is_cast)
    return {"encode": text, "denoise": text + denoiser, "decode": text + denoiser + vae}


def _mapped_in_turn(text: int, denoiser: int, vae: int, is_cast: bool) -> Mapping[str, int]:
    """The text encoder is let go before denoising, the VAE loaded after it; the denoiser stays for the next job."""
    return {"encode": text, "denoise": denoiser, "decode": denoiser + vae}


_HELD: Mapping[str, Mapping[Placement, Held]] = {
    "device": {"resident": _together, "model": _in_turn, "group": _in_turn, "sequential": _in_turn},
    "host": {"resident": _mapped, "model": _mapped_in_turn, "group": _mapped, "sequential": _mapped},
}
"""Bytes of weights by phase."""


def _host_bytes(phases: _Phases, device: DeviceFacts, plan: Plan) -> int:
    """What waits on the host; parts that are resident on an accelerator pass through it one at a time."""
    if device.is_host:
        return 0
    sizes = [size.bytes_in(phases.dtype_of(size)) for size in phases.model.roles.values()]
    pixels = _PIXEL_BYTES * phases.num_pixels
    return pixels + (max(sizes) if plan.placement == "resident" else sum(sizes))


def seconds_of(cost: Cost, rates: Rates, dtype: torch.dtype) -> float:
    """Seconds of arithmetic, in float32 twice those in 16 bits, and of beginning every operation."""
    slower = max(1.0, dtype.itemsize / 2)
    return sum(slower * number / rates.flops[kind] for kind, number in cost.flops.items()) + cost.calls * rates.seconds_per_call


def _seconds(phases: _Phases, rates: Rates, plan: Plan) -> float:
    job, model = phases.job, phases.model
    sizes = {size.role: size.bytes_in(phases.dtype_of(size)) for size in model.roles.values()}
    denoiser = sizes[model.denoiser.role]
    once = sum(sizes.values())
    step = seconds_of(phases.denoise, rates, phases.dtype) * (1 - _COMPILE_SAVES * plan.compile)
    copy = denoiser * (0.5 if plan.fp8 else 1.0) / rates.transfer
    per_step: Mapping[Placement, float] = {
        "resident": step,
        "model": step,
        "group": max(step, copy) if plan.use_streams else step + copy,
        "sequential": step + _LAYER_BY_LAYER * copy,
    }
    moved: Mapping[Placement, float] = {"resident": 0.0, "model": once, "group": once - denoiser, "sequential": once - denoiser}
    around = seconds_of(phases.encode, rates, phases.dtype) + seconds_of(
        phases.condition(tiles=plan.tiles), rates, phases.dtype
    )
    decode = job.batch_size * seconds_of(phases.decode(tiles=plan.tiles), rates, phases.dtype)
    compiling = _COMPILE_SECONDS * plan.compile
    return around + job.steps * per_step[plan.placement] + decode + moved[plan.placement] / rates.transfer + compiling


def _pays_to_compile(phases: _Phases, device: DeviceFacts, row: Row) -> bool:
    """Whether this job alone saves more than compiling costs, by tabled speeds; blocks that hooks bring one by one stay."""
    if device.is_host or row.plan.placement not in ("resident", "model"):
        return False
    return AS_FAST * _seconds(phases, device.rates, replace(row.plan, compile=True)) < row.order


def _notes(model: ModelSizes, device: DeviceFacts, job: GenerationJob, chosen: Row) -> Iterator[str]:
    yield from model.notes
    if chosen.fits and not device.is_pretended and chosen.peak_bytes > device.free_bytes:
        yield (
            f"Only {gibibytes(device.free_bytes)} of {device} are free now, and {gibibytes(chosen.peak_bytes)} are needed: "
            + ("weights would be read from the disk again and again" if device.is_host else "end what holds the rest")
            + ", or ask for a smaller plan."
        )
    if (job.dtype or model.denoiser.dtype) is torch.bfloat16 and not device.has_bf16 and not device.is_host:
        yield f"{device.name} has no units for bfloat16, which is emulated there: --precision fp16 is faster."
    if chosen.plan.tiles:
        yield "Tiles change the picture a little: no tile sees beyond itself."
    if chosen.plan.fp8:
        yield "fp8 changes the picture: weights are rounded to 8 bits. Nothing else fits."
    if chosen.fits and device.kind == "cuda" and chosen.peak_bytes > device.usable_bytes - GIB:
        yield "This is close: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True leaves fewer gaps."
