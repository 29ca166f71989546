"""Runs every benchmark and prints one table: ``python -m benchmarks``."""

import platform
from datetime import date

import torch

from . import adapter_files, algebra, attach, load, offline_fuse
from .side_by_side import Row

BENCHMARKS = (load.run, attach.run, algebra.run, adapter_files.run, offline_fuse.run)


def main() -> None:
    """Print the table as Markdown, with the machine named."""
    rows: list[Row] = [row for benchmark in BENCHMARKS for row in benchmark()]
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{date.today()}, {machine}\n")
    print("| what | reelora | diffusers + PEFT | ratio |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} | {row.ratio:.2f} |")


if __name__ == "__main__":
    main()
