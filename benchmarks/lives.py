"""One side's life with adapters on a model, in a process of its own: ``python -m benchmarks.lives SIDE FOLDER NUM_REGISTERED``.

``FOLDER`` holds the model and the files ``a`` to ``d`` and ``small``; seconds are printed as JSON.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from reelora import Rack, load_components, read_adapter
from reelora.lora import kernel
from reelora.lora.workers import for_each
from reelora.tensorio import fingerprint, open_tensors

from .measured import anonymous_bytes

__all__ = ["SIDES", "Life"]

Life = dict[str, list[float]]
"""What was measured, by name: seconds, but for shares and bytes."""

REPEATS, SWITCHES, FUSED_SWITCHES = 7, 1000, 20
MODULES_LOOKED_AT = 8
NO_BFLOAT16 = "REELORA_BENCH_NO_BF16"
"""Set for a processor without units for bfloat16; oneDNN is told by its own ONEDNN_MAX_CPU_ISA."""


class Side(Protocol):
    """The same work in two programs."""

    model: nn.Module

    def __init__(self, folder: Path) -> None: ...
    def load(self, name: str, path: Path) -> None: ...
    def unload(self, name: str) -> None: ...
    def activate(self, name: str, strength: float = 1.0) -> None: ...
    def fuse_together(self, names: Sequence[str]) -> None: ...
    def fuse(self) -> None: ...
    def restore(self) -> None: ...
    def refuse(self, name: str, strength: float = 1.0) -> None: ...
    def weight(self, path: str) -> Tensor: ...


class Ours:
    """A Rack on parts of a folder."""

    def __init__(self, folder: Path) -> None:
        if os.environ.get(NO_BFLOAT16):
            kernel._multiplies_bfloat16 = lambda: False
        self.model: nn.Module = load_components(folder, roles=["transformer"]).transformer
        self.rack = Rack(self.model)

    def load(self, name: str, path: Path) -> None:
        self.rack.load(name, path)

    def unload(self, name: str) -> None:
        self.rack.unload(name)

    def activate(self, name: str, strength: float = 1.0) -> None:
        self.rack.activate({name: strength})

    def fuse(self) -> None:
        self.rack.fuse()

    def restore(self) -> None:
        self.rack.restore()

    def refuse(self, name: str, strength: float = 1.0) -> None:
        self.rack.activate({name: strength})

    def fuse_together(self, names: Sequence[str]) -> None:
        self.rack.activate(dict.fromkeys(names, 1.0))

    def weight(self, path: str) -> Tensor:
        return self.model.get_parameter(f"{path}.weight")


class Theirs:
    """diffusers with PEFT."""

    is_frugal = True

    def __init__(self, folder: Path) -> None:
        from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

        warnings.simplefilter("ignore")
        self.theirs = CogVideoXTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.bfloat16)
        self.model: nn.Module = self.theirs

    def load(self, name: str, path: Path) -> None:
        # Without use_safetensors the header is not read, and the adapter acts at twice its strength.
        options = {"use_safetensors": True, "low_cpu_mem_usage": self.is_frugal}
        self.theirs.load_lora_adapter(path, prefix="transformer", adapter_name=name, **options)

    def unload(self, name: str) -> None:
        self.theirs.delete_adapters(name)

    def activate(self, name: str, strength: float = 1.0) -> None:
        self.theirs.set_adapters(name, strength)

    def fuse(self) -> None:
        self.theirs.fuse_lora()

    def restore(self) -> None:
        self.theirs.unfuse_lora()

    def refuse(self, name: str, strength: float = 1.0) -> None:
        self.theirs.unfuse_lora()
        self.theirs.set_adapters(name, strength)
        self.theirs.fuse_lora()

    def fuse_together(self, names: Sequence[str]) -> None:
        self.theirs.unfuse_lora()
        self.theirs.set_adapters(list(names), [1.0] * len(names))
        self.theirs.fuse_lora()

    def weight(self, path: str) -> Tensor:
        return self.theirs.get_parameter(f"{path}.base_layer.weight")


class TheirsByDefault(Theirs):
    """As users load who do not know ``low_cpu_mem_usage``."""

    is_frugal = False


SIDES: dict[str, type[Side]] = {"ours": Ours, "theirs": Theirs, "theirs by default": TheirsByDefault}


class _Clock:
    """Collects seconds by name."""

    def __init__(self) -> None:
        self.life: Life = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.note(name, time.perf_counter() - started)

    def note(self, name: str, value: float) -> None:
        self.life.setdefault(name, []).append(value)


def live(side_name: str, folder: Path, num_registered: int) -> Life:
    """Everything, in the order of a session."""
    clock = _Clock()
    side = SIDES[side_name](folder)
    _load(side, folder, clock)
    if side_name == "theirs by default":
        return clock.life
    side.load("a", folder / "a.safetensors")
    side.activate("a")
    _fuse(side, folder, clock)
    side.load("b", folder / "b.safetensors")
    _switch_fused(side, folder, clock)
    if num_registered > 2:
        _fuse_four(side, folder, clock)
    side.restore()
    _activate(side, "activate", clock, ("a", "b"))
    _strengths(side, clock)
    for number in range(num_registered - 2):
        side.load(f"more{number}", folder / "small.safetensors")
    _activate(side, f"activate, {num_registered} registered", clock, ("a", "b"))
    if isinstance(side, Ours):
        clock.note("changed by random switches", _random_switches(side))
    return clock.life


def _load(side: Side, folder: Path, clock: _Clock) -> None:
    for _ in range(REPEATS):
        with clock.of("load"):
            side.load("x", folder / "c.safetensors")
        side.unload("x")
    for _ in range(REPEATS):
        with clock.of("load and read"):
            side.load("x", folder / "c.safetensors")
            side.activate("x")
            _read_factors(side.model)
        side.unload("x")


def _read_factors(model: nn.Module) -> None:
    """Touch every A and B that hangs in the model, as a forward does."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if "lora_" in name:
            tensor.detach().view(torch.int16).flatten()[::1024].sum()


def _fuse(side: Side, folder: Path, clock: _Clock) -> None:
    before = anonymous_bytes()
    with clock.of("first fuse"):
        side.fuse()
    clock.note("bytes of the first fuse", anonymous_bytes() - before)
    clock.note("misrounded", _misrounded(side, folder))
    with clock.of("restore"):
        side.restore()
    clock.note("not restored", _not_restored(side, folder))
    side.fuse()
    for strength in (0.5, 0.7, 0.9, 0.6, 0.8):
        with clock.of("restore"):
            side.restore()
        if isinstance(side, Ours):
            side.fuse()  # ours fuses again from where it is; theirs has to restore, which is not on this clock
        with clock.of("fuse again"):
            side.activate("a", strength)
            side.fuse()
    if isinstance(side, Ours):
        _bare_products(side, folder, clock)


def _switch_fused(side: Side, folder: Path, clock: _Clock) -> None:
    side.refuse("b")  # loading has un-fused theirs, silently
    for name in ("a", "b", "a", "b", "a"):
        with clock.of("fused switch"):
            side.refuse(name)
    for name in ("c", "d"):
        with clock.of("fused switch from disk"):
            side.load(name, folder / f"{name}.safetensors")
            side.refuse(name)
        side.unload(name)
        side.restore()
        side.activate("a")
        side.fuse()


def _fuse_four(side: Side, folder: Path, clock: _Clock) -> None:
    for name in ("c", "d"):
        side.load(name, folder / f"{name}.safetensors")
    side.fuse_together(("c", "d"))  # loading has un-fused theirs, silently
    for _ in range(2):
        with clock.of("fuse four"):
            side.fuse_together(("a", "b", "c", "d"))
        side.fuse_together(("a",))
    for name in ("c", "d"):
        side.unload(name)
    side.restore()
    side.activate("a")
    side.fuse()


def _activate(side: Side, name: str, clock: _Clock, names: tuple[str, str]) -> None:
    for number in range(20):
        with clock.of(name):
            side.activate(names[number % 2])


def _strengths(side: Side, clock: _Clock) -> None:
    for number in range(20):
        with clock.of("change a strength"):
            side.activate("a", 0.5 + 0.01 * number)


def _looked_at(folder: Path) -> dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]]:
    """Some modules of adapter ``a`` with what is fused in float64 at strength 1, and the pristine weight."""
    adapter, base = read_adapter(folder / "a.safetensors"), open_tensors(folder / "transformer")
    names = list(adapter.pairs)[:: max(1, len(adapter.pairs) // MODULES_LOOKED_AT)]

    def look(name: str) -> tuple[Tensor, Tensor, Tensor]:
        weight = base[f"{name.partition('.')[2]}.weight"]
        rows = kernel.sample_rows(weight)
        return rows, kernel.fused_rows(weight, [(adapter.pairs[name], 1.0)], rows).to(weight.dtype), weight

    return {name.partition(".")[2]: lambda name=name: look(name) for name in names}


def _misrounded(side: Side, folder: Path) -> float:
    """The share of fused weights that are not the float64 sum rounded once; none counts as half a weight."""
    wrong = total = 0
    for path, look in _looked_at(folder).items():
        rows, exact, _ = look()
        wrong += int((side.weight(path)[rows] != exact).sum())
        total += exact.numel()
    return max(wrong, 0.5) / total


def _not_restored(side: Side, folder: Path) -> float:
    looks = {path: look()[2] for path, look in _looked_at(folder).items()}
    wrong = sum(int((side.weight(path) != weight).sum()) for path, weight in looks.items())
    return wrong / sum(weight.numel() for weight in looks.values())


def _bare_products(side: Ours, folder: Path, clock: _Clock) -> None:
    """The matrix products of a fuse and nothing else, into warm memory."""
    side.restore()
    adapter = read_adapter(folder / "a.safetensors")
    work = [(side.weight(name.partition(".")[2]), pair.b, pair.a) for name, pair in adapter.pairs.items()]
    out = [torch.zeros_like(weight) for weight, _, _ in work]

    def multiply(number: int) -> None:
        weight, b, a = work[number]
        torch.addmm(weight, b, a, alpha=0.5, out=out[number])

    for _ in range(5):
        with clock.of("bare products"):
            for number in range(len(work)):
                multiply(number)
        with clock.of("bare products beside each other"):
            for_each(multiply, range(len(work)), size_bytes=sum(target.nbytes for target in out))
    side.fuse()


def _random_switches(side: Ours) -> float:
    """1 if the base has other bits after many random switches, some of them fused."""
    side.activate("a", 0.0)
    before = fingerprint(side.model.state_dict())
    draw = torch.Generator().manual_seed(0)
    for number in range(SWITCHES):
        strength = float(torch.rand(1, generator=draw)) * 2 - 1
        side.activate("ab"[number % 2], strength)
        if number % (SWITCHES // FUSED_SWITCHES) == 0:
            side.fuse()
            side.restore()
    side.activate("a", 0.0)
    return float(fingerprint(side.model.state_dict()) != before)


if __name__ == "__main__":
    print(json.dumps(live(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
