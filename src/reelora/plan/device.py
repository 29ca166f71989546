"""What a device has: memory, units, speed; also of a device that is not here."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from reelora.errors import ConfigError, nearest

from .ledger import Work

__all__ = ["CARDS", "GIB", "DeviceFacts", "Rates", "device_facts", "parse_bytes", "pretended", "spilled_bytes", "with_memory"]

GIB = 2**30
_TERA = 10**12
_GIGA = 10**9
_DECIMAL: Mapping[str, int] = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BINARY: Mapping[str, int] = {"k": 2**10, "m": 2**20, "g": GIB, "t": 2**40}
_UNITS: Mapping[str, int] = {**_DECIMAL, **_BINARY, **{f"{letter}ib": size for letter, size in _BINARY.items()}}
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What is reached, not what is printed on the box."""

    flops: Mapping[Work, float]
    """Per second, in 16 bits; half of it in 32."""
    transfer: float
    """Bytes per second from the host's memory, in large blocks; on a CPU from the disk's cache."""
    seconds_per_call: float = 1e-5
    """What it takes to begin one operation, however small."""


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """One device with its host. ``total_bytes`` decides what fits; ``free_bytes`` only what is said of it."""

    kind: str
    """cpu, cuda, mps ..."""
    name: str
    total_bytes: int
    free_bytes: int
    host_bytes: int
    """The host's memory; the same as ``total_bytes`` on a CPU."""
    has_streams: bool = False
    """Whether it copies while it computes."""
    has_fp8: bool = False
    """Whether it has units for 8-bit floats. Weights can be stored in 8 bits without."""
    has_bf16: bool = True
    rates: Rates
    """From a table, so that what is chosen does not change from run to run."""
    measured: Rates | None = None
    """Of this very device now: for the times that are shown."""
    is_pretended: bool = False

    @property
    def is_host(self) -> bool:
        """Whether it shares the memory of the host."""
        return self.kind in ("cpu", "mps")

    @property
    def usable_bytes(self) -> int:
        """What a job may take: the rest is for the driver, the system, and gaps between blocks."""
        share, reserve = _usable(self.kind)
        return max(0, int(share * self.total_bytes) - reserve)

    def __str__(self) -> str:
        pretended = ", pretended" if self.is_pretended else ""
        return f"{self.name} ({self.total_bytes / GIB:.1f} GiB{pretended})"


_USABLE: Mapping[str, tuple[float, int]] = {"cpu": (0.9, GIB), "mps": (0.75, 0), "cuda": (0.96, GIB // 2)}
"""Share of the memory, and bytes of it that are taken already, by kind: a CUDA context holds about half a gibibyte."""


@dataclass(frozen=True, kw_only=True)
class _Card:
    """One accelerator by its data sheet."""

    memory_gib: float
    teraflops: float
    """Dense, bfloat16 (float16 where it has none) with sums in float32."""
    efficiency: float = 0.5
    """Share of it that denoising CogVideoX reaches."""
    has_fp8: bool = False
    has_bf16: bool = True
    transfer: float = 20
    """GB/s."""

    @property
    def rates(self) -> Rates:
        reached = self.efficiency * self.teraflops * _TERA
        flops: dict[Work, float] = {"product": reached, "attention": reached, "convolution": 0.6 * reached}
        return Rates(flops=flops, transfer=self.transfer * _GIGA)


_ADA, _HOPPER = {"has_fp8": True}, {"has_fp8": True, "efficiency": 0.37, "transfer": 40}
CARDS: Mapping[str, _Card] = {
    "t4": _Card(memory_gib=15, teraflops=65, has_bf16=False, transfer=6),
    "v100": _Card(memory_gib=32, teraflops=125, has_bf16=False, transfer=6),
    "rtx-3060": _Card(memory_gib=12, teraflops=51),
    "rtx-3090": _Card(memory_gib=24, teraflops=71),
    "rtx-4060": _Card(memory_gib=8, teraflops=61, transfer=10, **_ADA),
    "rtx-4070": _Card(memory_gib=12, teraflops=58, **_ADA),
    "rtx-4080": _Card(memory_gib=16, teraflops=97, **_ADA),
    "rtx-4090": _Card(memory_gib=24, teraflops=165, **_ADA),
    "rtx-5090": _Card(memory_gib=32, teraflops=209, transfer=40, **_ADA),
    "a10": _Card(memory_gib=24, teraflops=125),
    "a6000": _Card(memory_gib=48, teraflops=155),
    "l4": _Card(memory_gib=24, teraflops=121, efficiency=0.4, **_ADA),
    "l40s": _Card(memory_gib=48, teraflops=362, efficiency=0.4, **_ADA),
    "a100-40gb": _Card(memory_gib=40, teraflops=312),
    "a100": _Card(memory_gib=80, teraflops=312),
    "h100": _Card(memory_gib=80, teraflops=989, **_HOPPER),
    "h200": _Card(memory_gib=140, teraflops=989, **_HOPPER),
}
"""Sources: the vendor's data sheets. Efficiencies: from the published 50-step times of CogVideoX on A100 and H100."""

_UNKNOWN_CARD = "rtx-4090"
"""Whose speed an accelerator is taken to have that is in no row; its memory is asked of the driver."""

_PER_CORE = 8 * _GIGA
_CORE_FLOPS: Mapping[Work, float] = {"product": 4 * _PER_CORE, "attention": 3 * _PER_CORE, "convolution": 2 * _PER_CORE}


def device_facts(device: torch.device, *, measure: bool = False) -> DeviceFacts:
    """What a device of this machine has.

    With ``measure`` its speed is measured too, in less than half a second, once for the life of the process.
    """
    found = _READERS.get(device.type, _read_other)(device)
    return replace(found, measured=replace(found.rates, flops=_measured(str(device)))) if measure else found


def pretended(text: str, *, memory: str = "") -> DeviceFacts:
    """A device that is not here: a row of `CARDS` (``rtx-4090``), a size (``24GiB``) or ``cuda``, with ``memory`` over it.

    Its host is this one, so far as that matters. Raises ConfigError for what is neither, with the nearest name.
    """
    size = parse_bytes(text) if _is_size(text) else 0
    name = _card_of(text) or (_UNKNOWN_CARD if size or text == "cuda" else "")
    if not name:
        raise ConfigError(f"{text!r} is no device to plan for: {nearest(text, CARDS)} A size such as 24GiB will do too.")
    card = CARDS[name]
    total = parse_bytes(memory) if memory else size or int(card.memory_gib * GIB)
    return DeviceFacts(
        kind="cuda",
        name="an accelerator" if size or text == "cuda" else name,
        total_bytes=total,
        free_bytes=_idle("cuda", total),
        host_bytes=_host_total(),
        has_streams=True,
        has_fp8=card.has_fp8,
        has_bf16=card.has_bf16,
        rates=card.rates,
        is_pretended=True,
    )


def with_memory(device: DeviceFacts, memory: str) -> DeviceFacts:
    """The same device with another amount of memory."""
    total = parse_bytes(memory)
    host = total if device.is_host else device.host_bytes
    return replace(device, total_bytes=total, free_bytes=_idle(device.kind, total), host_bytes=host, is_pretended=True)


def _idle(kind: str, total: int) -> int:
    """What is free of a device on which nothing else runs."""
    return max(0, total - _usable(kind)[1])


def _usable(kind: str) -> tuple[float, int]:
    return _USABLE[kind if kind in _USABLE else "cuda"]


def parse_bytes(text: str) -> int:
    """``24GiB``, ``24 GB``, ``16g`` as bytes; ConfigError for what is none, or not above zero."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in _UNITS or not float(found[1]):
        raise ConfigError(f"{text!r} is no amount of memory: write a number and a unit, such as 24GiB.")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def spilled_bytes() -> int:
    """Bytes of this process that the system has moved out to its swap: with any, every step waits for the disk.

    Zero where the system does not say. Source: proc(5), VmSwap.
    """
    if not _STATUS.is_file():
        return 0
    line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmSwap")), "VmSwap: 0")
    return int(line.split()[1]) * 1024


def _is_size(text: str) -> bool:
    return re.fullmatch(r"\s*\d+(?:\.\d+)?\s*[a-zA-Z]+\s*", text) is not None and _card_of(text) == ""


def _card_of(text: str) -> str:
    """The row whose name has all its parts in a device's name; the longest, as ``a100-40gb`` before ``a100``."""
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    found = [name for name in CARDS if set(name.split("-")) <= set(words)]
    return max(found, key=len, default="")


def _read_cpu(device: torch.device) -> DeviceFacts:
    total = _host_total()
    cores = torch.get_num_threads()
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    flops: dict[Work, float] = {kind: cores * number for kind, number in _CORE_FLOPS.items()}
    rates = Rates(flops=flops, transfer=5 * _GIGA, seconds_per_call=3e-5)
    return DeviceFacts(
        kind="cpu",
        name=f"CPU with {os.cpu_count()} cores",
        total_bytes=total,
        free_bytes=min(total, psutil.virtual_memory().available),
        host_bytes=total,
        has_bf16=has_bf16,
        rates=rates,
    )


def _read_cuda(device: torch.device) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(device)
    card = CARDS[_card_of(properties.name) or _UNKNOWN_CARD]
    return DeviceFacts(
        kind="cuda",
        name=properties.name,
        total_bytes=properties.total_memory,
        free_bytes=torch.cuda.mem_get_info(device)[0],
        host_bytes=_host_total(),
        has_streams=True,
        has_fp8=torch.cuda.get_device_capability(device) >= (8, 9),
        has_bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        rates=card.rates,
    )


def _read_other(device: torch.device) -> DeviceFacts:
    """Another accelerator: its driver is asked for memory where it tells, else it is the host's."""
    total = free = _host_total()
    if device.type != "mps":
        free, total = torch.accelerator.get_memory_info(device)
    return DeviceFacts(
        kind=device.type,
        name=device.type,
        total_bytes=total,
        free_bytes=free,
        host_bytes=_host_total(),
        rates=CARDS[_UNKNOWN_CARD].rates,
    )


_READERS = {"cpu": _read_cpu, "cuda": _read_cuda}


def _host_total() -> int:
    """The host's memory, or what a container may have of it."""
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdigit() else total


@lru_cache
def _measured(device: str) -> Mapping[Work, float]:
    """The speed of each kind of arithmetic in bfloat16, measured on small tensors."""
    place = torch.device(device)
    return {kind: _speed(work, place) for kind, work in _PROBES.items()}


def _probe_product(like: Tensor) -> tuple[Callable[[], object], float]:
    a = like.new_ones(640, 640)
    return lambda: torch.mm(a, a), 2.0 * 640**3


def _probe_attention(like: Tensor) -> tuple[Callable[[], object], float]:
    tokens = like.new_ones(1, 4, 512, 64)
    return lambda: torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens), 4.0 * 4 * 512**2 * 64


def _probe_convolution(like: Tensor) -> tuple[Callable[[], object], float]:
    x, weight = like.new_ones(1, 64, 3, 24, 24), like.new_ones(64, 64, 3, 3, 3)
    return lambda: torch.nn.functional.conv3d(x, weight), 2.0 * 64 * 64 * 27 * 22 * 22


_PROBES: Mapping[Work, Callable[[Tensor], tuple[Callable[[], object], float]]] = {
    "product": _probe_product,
    "attention": _probe_attention,
    "convolution": _probe_convolution,
}


@torch.no_grad()
def _speed(probe: Callable[[Tensor], tuple[Callable[[], object], float]], device: torch.device) -> float:
    """Operations per second, the best of three after one that is not counted."""
    work, flops = probe(torch.empty(0, dtype=torch.bfloat16, device=device))
    work()
    return flops / min(_seconds(work, device) for _ in range(3))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    times = 1 if device.type == "cpu" else 20
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
