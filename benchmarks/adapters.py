"""Adapters on a live model: load, activate, fuse, restore; CogVideoX-2B and 5B at their widths and depths, rank 128, bfloat16.

Weights are random and lie on disk, as a user's do. Each side lives in a process of its own; the processes take turns, and the
best time of each step counts: what else a machine does only ever adds to it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from .bases import write_base, write_random_adapter
from .lives import NO_BFLOAT16, Life
from .side_by_side import Row

__all__ = ["run"]

DEPTHS = {"2B": 30, "5B": 42}
REGISTERED = {"2B": 50, "5B": 2}
ROUNDS = {"2B": 2, "5B": 1}
FILES = ("a", "b", "c", "d")
STEPS = {
    "load": "load a file onto a live model",
    "load and read": "load, activate and read every value once",
    "activate": "activate the other of 2",
    "activate, 50 registered": "activate another of 50",
    "change a strength": "change a strength",
    "first fuse": "first fuse",
    "fuse again": "fuse again with another strength",
    "restore": "restore",
    "fused switch": "switch fused adapters, both resident",
    "fused switch from disk": "switch fused adapters, from disk",
    "fuse four": "switch to four fused adapters",
}
BOUNDS = {
    "bare products": "the bare matrix products, one after the other",
    "bare products beside each other": "the bare matrix products, a thread for each",
}
SHARES = {"misrounded": "share of fused weights not rounded correctly", "not restored": "share of weights not restored"}
SIDES = ("ours", "theirs", "theirs by default")
HERE: Mapping[str, str] = MappingProxyType({})
PLAIN_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", NO_BFLOAT16: "1"}
"""A processor without units for bfloat16."""


def run() -> Iterator[Row]:
    """2B, then 5B, then 2B as on a processor without units for bfloat16."""
    for width, depth in DEPTHS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_files(folder, width, depth)
            yield from _rows(width, _lives(folder, SIDES, REGISTERED[width], rounds=ROUNDS[width]))
            if width == "2B":
                plain = _lives(folder, SIDES[:2], 2, rounds=1, environment=PLAIN_CPU)
                yield from _rows("2B without bfloat16 units", plain, only=("first fuse", "fuse again"))


def _write_files(folder: Path, width: str, depth: int) -> None:
    write_base(folder, width, num_layers=depth)
    for seed, name in enumerate(FILES):
        write_random_adapter(folder / f"{name}.safetensors", width, num_layers=depth, seed=seed)
    write_random_adapter(folder / "small.safetensors", width, num_layers=depth, seed=9, rank=1)


def _lives(
    folder: Path, sides: Sequence[str], num_registered: int, *, rounds: int, environment: Mapping[str, str] = HERE
) -> dict[str, Life]:
    """The best of every step, by side."""
    found: dict[str, Life] = {side: {} for side in sides}
    for _ in range(rounds):
        for side in sides:
            for step, values in _life(side, folder, num_registered, environment).items():
                found[side].setdefault(step, []).extend(values)
    return found


def _life(side: str, folder: Path, num_registered: int, environment: Mapping[str, str]) -> Life:
    command = [sys.executable, "-m", "benchmarks.lives", side, str(folder), str(num_registered)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


def _rows(label: str, lives: Mapping[str, Life], *, only: Sequence[str] = ()) -> Iterator[Row]:
    best = {side: {step: min(values) for step, values in life.items()} for side, life in lives.items()}
    ours, theirs = best["ours"], best["theirs"]
    for step, what in STEPS.items():
        if step in ours and (not only or step in only):
            yield Row(what=f"{label}: {what}", unit="s", ours=ours[step], theirs=theirs[step])
    if only:
        return
    default = best["theirs by default"]
    for step in ("load", "load and read"):
        yield Row(what=f"{label}: {STEPS[step]} (theirs: by default)", unit="s", ours=ours[step], theirs=default[step])
    for step in ("fuse again", "fused switch"):
        for bound, what in BOUNDS.items():
            yield Row(what=f"{label}: {STEPS[step]} (theirs: {what})", unit="s", ours=ours[step], theirs=ours[bound])
    for step, what in SHARES.items():
        yield Row(what=f"{label}: {what}", unit="", ours=ours[step], theirs=theirs[step])
    memory = "bytes of the first fuse"
    yield Row(
        what=f"{label}: anonymous memory of the first fuse", unit="MB", ours=ours[memory] / 1e6, theirs=theirs[memory] / 1e6
    )
    changed = ours["changed by random switches"]
    assert not changed, "the base has other bits after random switches"
