"""Seconds and peak anonymous memory of work in its own process: ``python -m benchmarks.measured MODULE FUNCTION ARGS...``."""

import json
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

__all__ = ["Measured", "anonymous_bytes", "measure"]

Measured = tuple[float, int]
"""Seconds, and bytes of anonymous memory above the imported process at the peak."""


def measure(module: str, function: str, *arguments: str | Path) -> Measured:
    """Call ``module.function(*arguments)`` in a fresh interpreter that has imported the module before the clock starts."""
    command = [sys.executable, "-m", "benchmarks.measured", module, function, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def anonymous_bytes() -> int:
    """Memory of this process that no file backs. Source: proc(5), RssAnon."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _main(module: str, function: str, *arguments: str) -> None:
    work = getattr(import_module(module), function)
    before, peak, is_over = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.005):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    work(*arguments)
    seconds = time.perf_counter() - started
    is_over.set()
    watcher.join()
    print(json.dumps([seconds, max(0, peak - before)]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
