"""Starting runs in processes of their own, alone or as a team, and killing them.

The processes are forked from one that has imported everything and computed nothing, so that a start takes no time.
"""

import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from small_run import main

from reelora.train import read_metrics

__all__ = ["finish", "kill_between", "losses_of", "start", "start_team"]

PATIENCE = 200

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "accelerate",
        "diffusers.models.transformers.cogvideox_transformer_3d",
        "diffusers.schedulers.scheduling_dpm_cogvideox",
        "reelora.train",
        "transformers",
    ]
)  # only what is installed: in Python 3.11 the server does not know the paths of the tests


def start(cache: Path, folder: Path, *settings: str, size: int = 1) -> list[ForkServerProcess]:
    """The processes of one start of a run, as a launcher would start them."""
    return start_team(main, str(cache), str(folder), *settings, size=size)


def start_team(program: Callable[..., None], *arguments: str, size: int) -> list[ForkServerProcess]:
    """Processes that run a program together, as a launcher would start them."""
    port = _free_port()
    processes = [FORKS.Process(target=_life, args=(rank, size, port, program, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[ForkServerProcess]) -> list[int | None]:
    """Exit codes."""
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def kill_between(processes: list[ForkServerProcess], folder: Path, chance: random.Random) -> bool:
    """Kill a run (-9) some moment after a step drawn at random; False if it was over before."""
    rows = folder / "metrics.jsonl"
    done = len(read_metrics(rows))
    wanted, deadline = done + chance.randrange(1, 6), time.monotonic() + PATIENCE
    while len(read_metrics(rows)) < wanted and processes[0].is_alive():
        assert time.monotonic() < deadline, "the run makes no steps"
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    is_running = processes[0].is_alive()
    for process in processes:
        process.kill()
    finish(processes)
    return is_running


def losses_of(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def _life(rank: int, size: int, port: int, program: Callable[..., None], *arguments: str) -> None:
    """What one process does."""
    team = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    if size > 1:
        os.environ.update({name: str(value) for name, value in (team | place).items()})
    program(*arguments)


def _free_port() -> int:
    with closing(socket.socket()) as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]
