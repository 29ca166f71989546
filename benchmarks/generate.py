"""Making videos: a session beside a plain diffusers script, on the pocket model and at CogVideoX-2B's width.

Each side lives in a process of its own; the processes take turns, and the best time of everything counts: of each video of the
queue too, of which the sum is the queue's. At 2B's width weights are random and lie on disk; the network has one of 30 blocks,
the text encoder one of T5-XXL's 24 layers, and the VAE few channels, since it would take most of the time of so few steps.
Steps and size are the smallest for which a session fuses adapters by itself. At these sizes neither side decodes in tiles.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from reelora.recipes import find_model

from .bases import write_attention_adapter, write_model
from .sessions import ADAPTERS, CPU_SECONDS, NUM_QUEUED, Life, Plan, clock
from .side_by_side import Row

__all__ = ["run"]

ROUNDS = 2
SIDES = ("ours", "theirs", "theirs encoded once")
NUM_LAYERS, RANK = 1, 128
POCKET = {"steps": 20, "guidance": 4.0, "num_frames": 17, "height": 64, "width": 64, "num_text_tokens": 24}
WIDE = {"steps": 4, "guidance": 6.0, "num_frames": 9, "height": 240, "width": 352, "num_text_tokens": 226}
POCKET_SHAPE = {"channels": 192, "num_layers": 6, "rank": 16}
WIDE_SHAPE = {"channels": 1920, "num_layers": NUM_LAYERS, "rank": RANK}
WHAT = {
    "cold start": "from the start of the process to the first step",
    "start": "from the call to the first step, all imported",
    "step": "a step, two adapters at changing strength",
    "video": "a video, two adapters at changing strength",
}
ALLOWED_DB = 50.0


def run() -> Iterator[Row]:
    """The pocket model, then 2B's width."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", "2B", num_layers=NUM_LAYERS)
        for label, model, shape, sizes in (
            ("pocket", find_model("pocket"), POCKET_SHAPE, POCKET),
            (f"2B width, {NUM_LAYERS} block", folder / "model", WIDE_SHAPE, WIDE),
        ):
            adapters = folder / label
            adapters.mkdir()
            for seed, adapter in enumerate(ADAPTERS):
                write_attention_adapter(adapters / f"{adapter}.safetensors", seed=seed, **shape)
            plan = Plan(model=str(model), adapters=str(adapters), precision="bfloat16", **sizes)
            yield from _checks(label, plan)
            yield from _rows(label, _lives(plan))


def _checks(label: str, plan: Plan) -> Iterator[Row]:
    """Frames of the base, to the byte; and in float32 those with adapters, where the peer's branches round twice."""
    for precision in ("bfloat16", "float32"):
        ours, theirs = (_frames(side, replace(plan, precision=precision)) for side in ("ours", "theirs"))
        assert np.array_equal(ours[0], theirs[0]), f"{label}: frames of the base differ in {precision}"
        assert ours[0].std() > 1, f"{label}: the base makes nothing but one colour"
    changed = min(_rms(video, theirs[0]) for video in theirs[1:])
    worst = max(_rms(one, other) for one, other in zip(ours[1:], theirs[1:], strict=True))
    allowed = 255 / 10 ** (ALLOWED_DB / 20)
    assert worst <= allowed < changed, f"{label}: frames with adapters differ by {worst:.2g}, adapters change {changed:.2g}"
    yield Row(
        what=f"{label}: rms difference of frames, float32 (theirs: {ALLOWED_DB:g} dB)", unit="", ours=worst, theirs=allowed
    )


def _rms(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


def _frames(side: str, plan: Plan) -> np.ndarray:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "frames.npy"
        _call("frames", side, plan, out)
        return np.load(out)


def _lives(plan: Plan) -> dict[str, Life]:
    """Everything that was measured, by side."""
    found: dict[str, Life] = {side: {} for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            started = 0.0 if os.environ.get(CPU_SECONDS) else clock()
            life: Life = json.loads(_call("life", side, plan, started).splitlines()[-1])
            for what, values in life.items():
                found[side].setdefault(what, []).extend(values)
    return found


def _call(verb: str, side: str, plan: Plan, last: object) -> str:
    file = Path(plan.adapters) / "plan.json"
    file.write_text(json.dumps(asdict(plan)))
    command = [sys.executable, "-m", "benchmarks.sessions", verb, side, str(file), str(last)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _rows(label: str, lives: Mapping[str, Life]) -> Iterator[Row]:
    best = {side: {what: min(values) for what, values in life.items()} for side, life in lives.items()}
    for what, told in WHAT.items():
        yield Row(what=f"{label}: {told}", unit="s", ours=best["ours"][what], theirs=best["theirs"][what])
    ours, theirs, encoded_once = (_queue(best[side]) for side in SIDES)
    queue = f"{label}: {NUM_QUEUED} videos over {len(ADAPTERS)} adapters, in all"
    yield Row(what=queue, unit="s", ours=ours, theirs=theirs)
    yield Row(what=f"{queue} (theirs: each prompt encoded once)", unit="s", ours=ours, theirs=encoded_once)


def _queue(best: Mapping[str, float]) -> float:
    return sum(best[f"queue {index}"] for index in range(NUM_QUEUED))
