"""Which block keeps what for the backward pass, so that a step fits into the memory that it may take."""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

from .rehearsal import BlockCost, Name, Rehearsal

__all__ = ["choose", "extra_work", "peak_bytes", "said", "uniform"]

_SAID: Mapping[str, str] = {
    "everything": "keep everything",
    "products": "keep their products",
    "attention": "keep their attention's result",
    "inputs": "keep their inputs alone",
}
"""The ways of blocks in words."""


def choose(rehearsal: Rehearsal[Name], budget: int, *, is_accumulating: bool = False) -> dict[nn.Module, Name]:
    """What each block keeps so that the step takes at most ``budget`` bytes and does as little again as possible.

    The least if nothing fits. What saves most bytes for its work goes first, and early blocks before late ones: when the
    backward pass comes to compute an early block again, what late blocks kept is free already.
    """
    chosen = uniform(rehearsal, 0)
    while peak_bytes(rehearsal, chosen, is_accumulating=is_accumulating) > budget:
        moves: list[tuple[float, nn.Module, Name]] = [
            (_worth(costs[chosen[block]], cost), block, kept)
            for block, costs in rehearsal.blocks.items()
            for kept, cost in costs.items()
            if cost.kept_bytes < costs[chosen[block]].kept_bytes
        ]
        if not moves:
            break
        _, block, kept = max(moves, key=lambda move: move[0])
        chosen[block] = kept
    return chosen


def uniform(rehearsal: Rehearsal[Name], place: int) -> dict[nn.Module, Name]:
    """The same way for all blocks, by its place in their rows: 0 is the first, -1 the last; a block with fewer has its last."""
    return {block: list(costs)[min(place, len(costs) - 1)] for block, costs in rehearsal.blocks.items()}


def peak_bytes(rehearsal: Rehearsal[Name], chosen: Mapping[nn.Module, Name], *, is_accumulating: bool = False) -> int:
    """What a step takes beside the weights and the optimizer, at the fullest place of its forward or backward pass.

    Gradients of trained weights come block by block as the backward pass goes from the last to the first, so that at the first
    block's nearly all are there, and next to nothing of the activations. Where a step has several passes
    (``is_accumulating``), all are there from the second pass on.
    """
    all_gradients = rehearsal.gradient_bytes
    waiting = all_gradients if is_accumulating else 0
    kept, come, peak = 0, all_gradients, 0
    for block, costs in rehearsal.blocks.items():
        cost = costs[chosen[block]]
        kept += cost.kept_bytes
        come -= cost.gradient_bytes
        outside = rehearsal.outside_bytes.get(block, rehearsal.rest_bytes)
        peak = max(peak, rehearsal.rest_bytes + kept + cost.forward_bytes + waiting)
        peak = max(peak, outside + kept + cost.backward_bytes + max(come, waiting))
    return max(peak, rehearsal.rest_bytes + kept + rehearsal.tail_bytes + waiting)


def extra_work(rehearsal: Rehearsal[Name], chosen: Mapping[nn.Module, Name]) -> float:
    """Operations that are done again, as a share of a step that does none again."""
    done = sum(costs[chosen[block]].operations for block, costs in rehearsal.blocks.items())
    least = sum(next(iter(costs.values())).operations for costs in rehearsal.blocks.values())
    return done / max(1, least) - 1


def said(kept: Iterable[str]) -> str:
    """How many blocks keep what, in words: ``13 keep their products, 17 keep their attention's result``."""
    counts = Counter(kept)
    return ", ".join(f"{counts[name]} {words}" for name, words in _SAID.items() if counts[name])


def _worth(now: BlockCost, then: BlockCost) -> float:
    """Bytes saved for each operation that is added."""
    return (now.kept_bytes - then.kept_bytes) / max(1, then.operations - now.operations)
