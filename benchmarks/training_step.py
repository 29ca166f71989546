"""One step of training at real widths: seconds, what autograd keeps, and the peak of memory.

Ours stands beside diffusers' transformer with PEFT, once as CogVideo's trainer sets it up (the base in float32 under autocast)
and once tuned by hand (the base in bfloat16), and beside the bare base whose activations alone get gradients. All have the same
weights, adapters of rank 128 and inputs. Every side is a process of its own with one thread, and they step in turn; what is
counted is processor time, which whatever else the machine does changes least, and of that the best.

A side by itself, with a profile: ``python -m benchmarks.training_step profile tuned 2B-1k``. The anonymous memory of a process
beside its prediction: ``python -m benchmarks.training_step process ours 2B-1k``.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .models import WIDTHS
from .side_by_side import Row

__all__ = ["run"]

RANK, ALPHA = 128, 64
TEXT_TOKENS, TEXT_WIDTH, CHANNELS = 226, 4096, 16


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and its input."""

    width: str
    num_layers: int
    latents: tuple[int, int, int]
    """Frames, height and width."""
    steps: int
    """That are measured, after one that is not."""

    @property
    def tokens(self) -> int:
        frames, height, width = self.latents
        return TEXT_TOKENS + frames * height * width // 4

    def __str__(self) -> str:
        return f"{self.width}, {self.num_layers} blocks, {self.tokens:,} tokens"


SIZES: Mapping[str, Size] = {
    "2B-1k": Size(width="2B", num_layers=3, latents=(1, 60, 60), steps=4),
    "5B-1k": Size(width="5B", num_layers=2, latents=(1, 60, 60), steps=3),
    "2B-4k": Size(width="2B", num_layers=2, latents=(3, 60, 84), steps=2),
    "5B-4k": Size(width="5B", num_layers=2, latents=(3, 60, 84), steps=1),
}
KEPT: Mapping[str, str] = {"all": "everything kept", "again": "checkpointing"}
"""What blocks keep: everything, or so little that the peak is about that of the stock checkpointing."""
PEERS: Mapping[str, str] = {"cogvideo": "CogVideo's setup", "tuned": "PEFT tuned by hand"}
FLOOR, FRUGAL, WITHIN = "floor", "frugal", "within"
SIDES = ("ours", *PEERS, FLOOR)
BESIDE_TUNED = (
    (WITHIN, "planned within its peak", "again", "step"),
    (WITHIN, "planned within its peak", "again", "peak of tensors"),
    (FRUGAL, "products kept", "all", "step"),
    (FRUGAL, "products kept", "all", "kept for backward"),
)
"""What our blocks keep, in words, what those of tuned keep beside it, and what is compared."""


def run(names: Sequence[str] = tuple(SIZES)) -> Iterator[Row]:
    """Seconds, bytes that autograd keeps, and peaks of memory, with and without checkpointing."""
    for name in names:
        size = SIZES[name]
        found = _in_turn(name, size.steps)
        for kept, text in KEPT.items():
            for unit, measured in (("s", "step"), ("MB", "kept for backward"), ("MB", "peak of tensors")):
                best = found[kept, measured]
                for peer, what in PEERS.items():
                    yield _row(f"{size}, {text}: {measured} (theirs: {what})", unit, best["ours"], best[peer])
        for kept, text, beside, measured in BESIDE_TUNED:
            unit = "s" if measured == "step" else "MB"
            what = f"{size}, {text}: {measured} (theirs: tuned, {KEPT[beside]})"
            yield _row(what, unit, found[kept, measured]["ours"], found[beside, measured]["tuned"])
        yield _row(f"{size}: step (theirs: the bare base)", "s", found["all", "step"]["ours"], found["all", "step"][FLOOR])


def _row(what: str, unit: str, ours: float, theirs: float) -> Row:
    scale = 1e6 if unit == "MB" else 1
    return Row(what=what, unit=unit, ours=ours / scale, theirs=theirs / scale)


class Side:
    """A model with what its program does in a step."""

    def __init__(self, side: str, size: Size) -> None:
        self._pass = _PASSES[side](size)
        self._parameters = [parameter for parameter in self._pass.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-4, fused=True) if self._parameters else None
        draw = torch.Generator().manual_seed(1)
        self._video = torch.randn(1, size.latents[0], CHANNELS, *size.latents[1:], generator=draw)
        self._text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=draw)
        self._rotary = _rotary(self._pass.model, size)

    def keep(self, kept: str) -> None:
        """Let the blocks keep everything, or less."""
        self._pass.keep(self, kept)

    def loss(self) -> Tensor:
        """That of one forward pass."""
        inputs = {"hidden_states": self._video, "encoder_hidden_states": self._text}
        predicted = self._pass.model(
            **{name: value.to(self._pass.dtype).requires_grad_(not self._parameters) for name, value in inputs.items()},
            timestep=torch.tensor([500]),
            image_rotary_emb=self._rotary,
            return_dict=False,
        )[0]
        return predicted.float().square().mean()

    def step(self) -> float:
        """A whole step; its loss."""
        with self._pass.around():
            with self._pass.autocast():
                loss = self.loss()
            loss.backward()
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def memory(self) -> tuple[int, int]:
        """Bytes that live between forward and backward and did not before, and the most that all tensors take in a step."""
        with self._pass.around(), _Alive() as alive:
            with self._pass.autocast():
                loss = self.loss()
            kept = alive.bytes_now()
            loss.backward()
        for parameter in self._parameters:
            parameter.grad = None
        return kept, self.held_bytes() + alive.peak

    def process_memory(self) -> tuple[int, int]:
        """Anonymous memory of this process at the peak of a step, beyond what it held before the model was made; predicted."""
        self.step()
        with _Anonymous() as anonymous:
            self.step()
        return anonymous.peak - self._pass.before, self.held_bytes() + self._pass.predicted_bytes(self)

    def held_bytes(self) -> int:
        """Of all weights, and of the moments and the copies of those that are trained."""
        trained = sum(parameter.numel() for parameter in self._parameters)
        moments = 2 * sum(parameter.nbytes for parameter in self._parameters)
        return sum(parameter.nbytes for parameter in self.model.parameters()) + moments + self._pass.copied_bytes * trained

    @property
    def model(self) -> Any:
        return self._pass.model

    def around(self) -> Any:
        """What a pass runs in."""
        return self._pass.around()


def _stock(side: Side, kept: str) -> None:
    """Checkpointing as diffusers has it, or none."""
    if kept == "again":
        side.model.enable_gradient_checkpointing()
    else:
        side.model.disable_gradient_checkpointing()


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """How one program runs the model."""

    model: Any
    dtype: torch.dtype = torch.bfloat16
    autocast: Callable[[], Any] = nullcontext
    around: Callable[[], Any] = nullcontext
    keep: Callable[[Side, str], None] = _stock
    copied_bytes: int = 0
    """Of copies in lower precision that lie there throughout, of each trained number."""
    before: int = 0
    """Anonymous memory of the process before the model was made."""
    predicted_bytes: Callable[[Side], int] = lambda side: 0
    """What a step takes at its peak beside what is held."""


def _ours(size: Size) -> _Pass:
    from reelora import LoraSpec, attach
    from reelora.lora import Shadows
    from reelora.plan import choose, peak_bytes, rehearse
    from reelora.train.recompute import Kept, Recomputing, ways_of

    ways: Mapping[str, Kept] = {"all": "everything", "again": "attention", FRUGAL: "products"}
    before = _anonymous_bytes()
    model = _model(size)
    attach(model, LoraSpec(rank=RANK, alpha=ALPHA))
    _fill(model, "lora_a", "lora_b")
    chosen: dict[nn.Module, Kept] = {}

    def keep(side: Side, kept: str) -> None:
        if kept in ways:
            chosen.update(dict.fromkeys(model.transformer_blocks, ways[kept]))
        else:
            with side.around():
                chosen.update(choose(rehearse(model, side.loss, ways_of), int(kept) - side.held_bytes()))
        model.enable_gradient_checkpointing(Recomputing(chosen))

    def predicted_bytes(side: Side) -> int:
        with side.around():
            predicted = peak_bytes(rehearse(model, side.loss, ways_of), chosen)
        model.enable_gradient_checkpointing(Recomputing(chosen))
        return predicted

    told = {"keep": keep, "copied_bytes": 2, "before": before, "predicted_bytes": predicted_bytes}
    return _Pass(model=model.train(), around=Shadows(model).cast, **told)


def _theirs(size: Size, dtype: torch.dtype) -> _Pass:
    from peft import LoraConfig

    model = _model(size).to(dtype)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # as cast_training_params does
    _fill(model, "lora_A.default.weight", "lora_B.default.weight")
    return _Pass(model=model.train(), dtype=dtype, autocast=lambda: torch.autocast("cpu", torch.bfloat16))


_PASSES: Mapping[str, Callable[[Size], _Pass]] = {
    "ours": _ours,
    "cogvideo": lambda size: _theirs(size, torch.float32),
    "tuned": lambda size: _theirs(size, torch.bfloat16),
    FLOOR: lambda size: _Pass(model=_model(size).train()),
}


def _model(size: Size) -> Any:
    """A transformer whose weights repeat a million random numbers: drawing each of them takes longer than the steps."""
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(num_layers=size.num_layers, **WIDTHS[size.width])
    nn.Module.to(model, torch.bfloat16).to_empty(device="cpu")
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    for tensor in (*model.parameters(), *model.buffers()):
        for part in tensor.data.view(-1).split(len(pool)):
            part.copy_(pool[: len(part)])
    return model.requires_grad_(False)


def _fill(model: nn.Module, *endings: str) -> None:
    """The same A and B for every side."""
    draw = torch.Generator().manual_seed(2)
    named = dict(model.named_parameters())
    for ending, std in zip(endings, (0.02, 0.01), strict=True):
        for name in sorted(name for name in named if name.endswith(ending)):
            nn.init.normal_(named[name], std=std, generator=draw)


def _rotary(model: Any, size: Size) -> Any:
    from reelora.components import rotary_positions

    if not model.config.use_rotary_positional_embeddings:
        return None
    frames, height, width = size.latents
    return rotary_positions(model.config, num_latent_frames=frames, height=height, width=width, device=torch.device("cpu"))


class _Alive(TorchDispatchMode):
    """Everything that was made inside and still lives."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if not func.is_view:
            for result in tree_leaves(results):
                if isinstance(result, Tensor):
                    self._held[StorageWeakRef(result.untyped_storage())] = result.untyped_storage().nbytes()
            self.peak = max(self.peak, self.bytes_now())
        return results

    def bytes_now(self) -> int:
        self._held = {held: size for held, size in self._held.items() if not held.expired()}
        return sum(self._held.values())


class _Anonymous:
    """The most anonymous memory that this process holds inside, looked at every few milliseconds."""

    def __enter__(self) -> Self:
        self.peak = _anonymous_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.003):
            self.peak = max(self.peak, _anonymous_bytes())


def _anonymous_bytes() -> int:
    """Source: proc(5), RssAnon: of no file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


Found = Mapping[tuple[str, str], dict[str, float]]
"""By what is kept and what was measured: the figure of every side."""


def _in_turn(name: str, steps: int) -> Found:
    """The sides live at the same time and work one after the other; of seconds the best."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-m", "benchmarks.training_step", "serve"]
    live = {side: subprocess.Popen([*command, side, name], **pipes) for side in SIDES}
    found: dict[tuple[str, str], dict[str, float]] = {}
    losses: set[float] = set()
    for kept in (*KEPT, FRUGAL, WITHIN):
        sides = [side for side in SIDES if (kept in KEPT or side == "ours") and (kept == "all" or side != FLOOR)]
        how = str(int(found["again", "peak of tensors"]["tuned"])) if kept == WITHIN else kept
        for number in range(steps + 1):
            for side in sides:
                seconds, loss = _asked(live[side], how, "step")
                if number:
                    best = found.setdefault((kept, "step"), {})
                    best[side] = min(seconds, best.get(side, seconds))
                elif kept == "all" and side != FLOOR:
                    losses.add(loss)
        for side in sides:
            measured = _asked(live[side], how, "memory")
            for what, value in zip(("kept for backward", "peak of tensors"), measured, strict=True):
                found.setdefault((kept, what), {})[side] = value
    for process in live.values():
        process.communicate()
    assert max(losses) < 1.02 * min(losses), f"the sides compute other things: {losses}"
    return found


def _asked(process: Any, kept: str, what: str) -> list[float]:
    process.stdin.write(f"{kept} {what}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def _compare(side: Side) -> None:
    """What the process takes beside what was predicted, for every way of the blocks."""
    for kept in (*KEPT, FRUGAL):
        side.keep(kept)
        process, predicted = side.process_memory()
        found = {"process": process, "tensors": side.memory()[1], "predicted": predicted}
        print(kept.ljust(8), *(f"{name} {size / 1e6:6.0f} MB" for name, size in found.items()))


def _serve(side: Side) -> None:
    for line in sys.stdin:
        kept, what = line.split()
        side.keep(kept)
        if what == "memory":
            print(json.dumps(side.memory()), flush=True)
        else:
            started = time.process_time()
            loss = side.step()
            print(json.dumps([time.process_time() - started, loss]), flush=True)


def _profile(side: Side) -> None:
    from torch.profiler import ProfilerActivity, profile

    for kept in KEPT:
        side.keep(kept)
        side.step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            side.step()
        print(kept, profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"serve": _serve, "profile": _profile, "process": _compare}[sys.argv[1]](Side(sys.argv[2], SIZES[sys.argv[3]]))
