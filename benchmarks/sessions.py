"""One side's session with a model, in a process of its own: ``python -m benchmarks.sessions VERB SIDE PLAN ...``.

``life SIDE PLAN STARTED`` prints seconds as JSON; ``STARTED`` is what the clock showed when the process was asked for. ``frames
SIDE PLAN OUT`` writes videos to be compared. Nothing heavy is imported before a side is made: that is on its clock.
"""

import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

__all__ = ["ADAPTERS", "CPU_SECONDS", "NUM_QUEUED", "SIDES", "Life", "Order", "Plan", "Side", "compared", "queue_of"]

Life = dict[str, list[float]]
"""Seconds by what was measured."""

CPU_SECONDS = "REELORA_BENCH_CPU_SECONDS"
"""Set where other work shares the machine: seconds are then those of the processor, which waiting adds nothing to. Meant for
one thread."""
clock = time.process_time if os.environ.get(CPU_SECONDS) else time.monotonic

ADAPTERS = ("pastel", "crayon", "marble", "velvet")
"""Names of adapter files beside the plan."""
PROMPTS = ("a red circle moves right", "a small blue square", "a green triangle grows", "a white ball rolls over grass")
STRENGTHS = (0.6, 0.8, 1.0)
NUM_QUEUED, NUM_VIDEOS, NUM_STARTS = 20, 4, 3


@dataclass(frozen=True, kw_only=True)
class Order:
    """One video."""

    prompt: str
    seed: int
    adapters: Mapping[str, float] = field(default_factory=dict)
    """Strengths by name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model, where the adapters lie, and what is the same for all its videos."""

    model: str
    adapters: str
    precision: str
    steps: int
    guidance: float
    num_frames: int
    height: int
    width: int
    num_text_tokens: int

    @property
    def size(self) -> dict[str, int]:
        return {"num_frames": self.num_frames, "height": self.height, "width": self.width}

    def file(self, name: str) -> Path:
        return Path(self.adapters) / f"{name}.safetensors"


def queue_of(num_orders: int) -> list[Order]:
    """Videos of all adapters in random order."""
    draw = random.Random(0)
    names = [ADAPTERS[number % len(ADAPTERS)] for number in range(num_orders)]
    draw.shuffle(names)
    strengths = [draw.choice(STRENGTHS) for _ in names]
    prompts = [draw.choice(PROMPTS) for _ in names]
    told = enumerate(zip(prompts, names, strengths, strict=True))
    return [Order(prompt=prompt, seed=seed, adapters={name: strength}) for seed, (prompt, name, strength) in told]


def compared(precision: str) -> list[Order]:
    """What both sides have to make alike: the base, and in float32 one and two adapters."""
    base = Order(prompt=PROMPTS[0], seed=7)
    acting: list[dict[str, float]] = [{"pastel": 1.0}, {"crayon": 0.6, "marble": 0.9}]
    return [base, *(Order(prompt=PROMPTS[1], seed=8, adapters=adapters) for adapters in acting if precision == "float32")]


OnStep = Callable[[], None]


def _nothing() -> None:
    """For who is not interested in steps."""


class Side(Protocol):
    """The same work in two programs."""

    def __init__(self, plan: Plan) -> None: ...
    def make(self, order: Order, on_step: OnStep = _nothing) -> Any: ...
    def queue(self, orders: Sequence[Order]) -> Iterator[int]: ...
    def frames(self, order: Order) -> Any: ...
    def check_base(self) -> None: ...


class Ours:
    """A Session."""

    def __init__(self, plan: Plan) -> None:
        import torch

        from reelora import Session

        self._plan = plan
        self._session = Session(plan.model, dtype=getattr(torch, plan.precision))
        self._settings = {"steps": plan.steps, "guidance": plan.guidance, **plan.size}

    def make(self, order: Order, on_step: OnStep = _nothing) -> Any:
        inputs = {"seed": order.seed, "adapters": self._files(order), **self._settings}
        return self._session.generate(order.prompt, on_step=lambda done, total: on_step(), **inputs)

    def queue(self, orders: Sequence[Order]) -> Iterator[int]:
        jobs = [
            self._session.job(order.prompt, seed=order.seed, adapters=self._files(order), **self._settings) for order in orders
        ]
        return (index for index, _ in self._session.run(jobs))

    def frames(self, order: Order) -> Any:
        return self.make(order).frames.numpy()

    def check_base(self) -> None:
        """The weights are those of the files, bit for bit."""
        from reelora.tensorio import fingerprint, open_tensors

        pristine = fingerprint(open_tensors(Path(self._plan.model) / "transformer"))
        assert fingerprint(self._session.parts.transformer.state_dict()) == pristine, "the base has other bits after the queue"

    def _files(self, order: Order) -> dict[Path, float]:
        return {self._plan.file(name): strength for name, strength in order.adapters.items()}


class Theirs:
    """diffusers with PEFT: everything is loaded once and kept; adapters act as branches, so that the base never drifts."""

    def __init__(self, plan: Plan) -> None:
        import torch
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

        warnings.simplefilter("ignore")
        self._plan, self._torch = plan, torch
        self._pipe: Any = CogVideoXPipeline.from_pretrained(plan.model, torch_dtype=getattr(torch, plan.precision))
        scheduler = self._pipe.scheduler
        self._pipe.scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
        self._pipe.set_progress_bar_config(disable=True)
        self._loaded: set[str] = set()

    def make(self, order: Order, on_step: OnStep = _nothing) -> Any:
        plan = self._plan

        def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return tensors

        self._activate(order.adapters)
        return self._pipe(
            **self._texts(order.prompt),
            **plan.size,
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance,
            generator=self._torch.Generator("cpu").manual_seed(order.seed),
            max_sequence_length=plan.num_text_tokens,
            callback_on_step_end=after_step,
        ).frames[0]

    def queue(self, orders: Sequence[Order]) -> Iterator[int]:
        for index, order in enumerate(orders):
            self.make(order)
            yield index

    def frames(self, order: Order) -> Any:
        import numpy as np

        return np.stack([np.asarray(picture) for picture in self.make(order)])

    def check_base(self) -> None:
        """Nothing was fused."""

    def _activate(self, strengths: Mapping[str, float]) -> None:
        for name in strengths.keys() - self._loaded:
            self._pipe.load_lora_weights(self._plan.file(name), adapter_name=name)
            self._loaded.add(name)
        if strengths:
            self._pipe.set_adapters(list(strengths), list(strengths.values()))
        elif self._loaded:
            self._pipe.disable_lora()

    def _texts(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt}


class TheirsEncodedOnce(Theirs):
    """As users write it who encode a prompt only once."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._encoded: dict[str, Any] = {}

    def _texts(self, prompt: str) -> dict[str, Any]:
        return {"prompt_embeds": self._states(prompt), "negative_prompt_embeds": self._states("")}

    def _states(self, text: str) -> Any:
        if text not in self._encoded:
            with self._torch.no_grad():
                options = {"do_classifier_free_guidance": False, "max_sequence_length": self._plan.num_text_tokens}
                self._encoded[text] = self._pipe.encode_prompt(text, **options)[0]
        return self._encoded[text]


SIDES: dict[str, type[Side]] = {"ours": Ours, "theirs": Theirs, "theirs encoded once": TheirsEncodedOnce}
ONLY_QUEUED = ("theirs encoded once",)


class _FirstStepError(Exception):
    """It is done."""


def _live(kind: type[Side], plan: Plan, started: float, *, starts: bool) -> Life:
    life: Life = {}
    _first_step(kind, plan)
    if starts:
        life["cold start"] = [clock() - started]
        life["start"] = [_seconds(lambda: _first_step(kind, plan)) for _ in range(NUM_STARTS)]
        life |= _videos(kind(plan))
    return {**life, **_queue(kind, plan)}


def _first_step(kind: type[Side], plan: Plan) -> None:
    """With an adapter, until the first step is done."""

    def stop() -> None:
        raise _FirstStepError

    with suppress(_FirstStepError):
        kind(plan).make(queue_of(1)[0], stop)


def _seconds(work: Callable[[], object]) -> float:
    started = clock()
    work()
    return clock() - started


def _videos(side: Side) -> Life:
    """Two adapters that change their strengths from video to video; the first one loads, and is not looked at."""
    life: Life = {"step": [], "video": []}
    for number in range(1 + NUM_VIDEOS):
        at: list[float] = []
        adapters = {"pastel": 1 - 0.1 * number, "crayon": 0.5 + 0.1 * number}
        order = Order(prompt=PROMPTS[0], seed=number, adapters=adapters)
        took = _seconds(lambda order=order, at=at: side.make(order, lambda: at.append(clock())))
        if number:
            life["video"].append(took)
            life["step"] += [after - before for before, after in pairwise(at)]
    return life


def _queue(kind: type[Side], plan: Plan) -> Life:
    """Seconds of each video from the one before on; those of the first begin before the model is loaded."""
    life: Life = {}
    before = clock()
    side = kind(plan)
    for index in side.queue(queue_of(NUM_QUEUED)):
        now = clock()
        life[f"queue {index}"] = [now - before]
        before = now
    side.check_base()
    return life


def _write_frames(kind: type[Side], plan: Plan, out: Path) -> None:
    import numpy as np

    side = kind(plan)
    np.save(out, np.stack([side.frames(order) for order in compared(plan.precision)]))


def _main(verb: str, side: str, plan_file: str, last: str) -> None:
    plan = Plan(**json.loads(Path(plan_file).read_text()))
    if verb == "frames":
        _write_frames(SIDES[side], plan, Path(last))
    else:
        print(json.dumps(_live(SIDES[side], plan, float(last), starts=side not in ONLY_QUEUED)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
