"""What compiled blocks bring to a step of training: ours with its blocks compiled beside ours with its blocks as they are.

At CogVideoX-2B's width in bfloat16 with rank 128, in one process with one thread, in turn; what is counted is processor time,
and of that the best. On a processor a step is matrix products and attention, which compiling leaves as they are.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reelora.lora import TrainableLinear
from reelora.train import LoopConfig
from reelora.train.compiled import Blocks, PlainBlocks, blocks_for
from reelora.train.recompute import Kept, Recomputing

from .side_by_side import Row
from .training_step import SIZES, Side

__all__ = ["run"]

NAME, STEPS = "2B-1k", 7
KEPT: Mapping[Kept, str] = {"everything": "everything kept", "attention": "attention kept", "inputs": "inputs kept"}


def run() -> Iterator[Row]:
    """Seconds of a step, of the one in which code is made, and bytes that autograd keeps; theirs is without compiling."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    side = Side("ours", SIZES[NAME])
    plain, compiled = PlainBlocks(), blocks_for(side.model, LoopConfig(compile=True))
    first, second = (_wall(partial(_step, side, blocks, "everything")) for blocks in (compiled, plain))
    for kept, text in KEPT.items():
        best = _best({"ours": partial(_step, side, compiled, kept), "theirs": partial(_step, side, plain, kept)})
        yield Row(what=f"{SIZES[NAME]}, {text}: step, compiled (theirs: not)", unit="s", **best)
    kept_bytes = {"ours": _kept_bytes(side, compiled) / 1e6, "theirs": _kept_bytes(side, plain) / 1e6}
    yield Row(what=f"{SIZES[NAME]}: kept for backward, compiled (theirs: not)", unit="MB", **kept_bytes)
    what = f"{SIZES[NAME]}: wall time of the first step, in which code is made (theirs: not compiled)"
    yield Row(what=what, unit="s", ours=first, theirs=second)
    torch.set_num_threads(threads)


def _step(side: Side, blocks: Blocks, kept: Kept) -> None:
    side.model.enable_gradient_checkpointing(Recomputing({}, otherwise=kept, ways=blocks.ways_of))
    with blocks.running():
        side.step()


def _wall(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _best(works: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(STEPS + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if number:
                found[name].append(time.process_time() - started)
    return {name: min(times) for name, times in found.items()}


def _kept_bytes(side: Side, blocks: Blocks) -> int:
    """Of a forward pass that keeps everything, beside weights and their copies of lower precision."""
    held: dict[int, Any] = {}
    side.model.enable_gradient_checkpointing(Recomputing({}, otherwise="everything", ways=blocks.ways_of))
    with side.around(), blocks.running():
        branches = [module for module in side.model.modules() if isinstance(module, TrainableLinear)]
        lows = [low for branch in branches for low in (branch.shadow, branch.shared_shadow) if low]
        known = [*side.model.parameters(), *(copy for low in lows for copy in (low.a, *low.bs))]
        places = {tensor.untyped_storage()._cdata for tensor in known}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in places:
                held[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = side.loss()
    assert loss.grad_fn is not None
    return sum(storage.nbytes() for storage in held.values())
