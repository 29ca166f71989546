"""Runs every benchmark, or those that are named, and prints one table: ``python -m benchmarks [NAME ...]``."""

import platform
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from . import (
    adapter_files,
    adapters,
    algebra,
    attach,
    base_storage,
    checkpoint,
    compiled_step,
    forwards,
    generate,
    load,
    offline_fuse,
    precompute,
    training,
    training_step,
)

BENCHMARKS = {
    "load": load.run,
    "attach": attach.run,
    "adapters": adapters.run,
    "forwards": forwards.run,
    "algebra": algebra.run,
    "adapter_files": adapter_files.run,
    "offline_fuse": offline_fuse.run,
    "checkpoint": checkpoint.run,
    "precompute": precompute.run,
    "training": training.run,
    "training_step": training_step.run,
    "base_storage": base_storage.run,
    "compiled_step": compiled_step.run,
    "generate": generate.run,
}


def main(names: Sequence[str]) -> None:
    """Print the table as Markdown, with the machine named; every row as soon as it is known."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
    print(f"{date.today()}, {_processor()}, {torch.get_num_threads()} threads; {libraries}\n")
    print("| what | reelora | diffusers + PEFT | ratio |\n|---|---|---|---|")
    for row in (row for name in names or BENCHMARKS for row in BENCHMARKS[name]()):
        print(f"| {row.what} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} | {row.ratio:.2f} |", flush=True)


def _processor() -> str:
    """The processor as it calls itself, where the system says so."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main(sys.argv[1:])
