"""Settings that work but seldom well: a table of rules, read by `advise`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from reelora.errors import first_few

if TYPE_CHECKING:
    from .spec import LoraSpec

__all__ = ["Advice", "advise", "share_of_layer"]

SMALLEST_REAL_WIDTH = 1920
"""Width of CogVideoX-2B, the smallest published one (hub zai-org/CogVideoX-2b, transformer/config.json: 30 heads of 64)."""

_COGVIDEO = "CogVideo finetune/README.md: rank at least 64, alpha = rank or rank // 2"
_LORA = "LoRA, arXiv:2106.09685"


@dataclass(frozen=True)
class Advice:
    """One thing to reconsider, and who says so."""

    sentence: str
    source: str

    def __str__(self) -> str:
        return f"{self.sentence} ({self.source})"


class _Case(NamedTuple):
    """What the rules look at: the spec, and the (out, in) of every targeted Linear of the model."""

    spec: "LoraSpec"
    shapes: Mapping[str, tuple[int, int]]
    model_class: str

    @property
    def ratio(self) -> float:
        return self.spec.alpha / self.spec.rank

    @property
    def is_real_cogvideox(self) -> bool:
        width = max((max(shape) for shape in self.shapes.values()), default=0)
        return self.model_class.startswith("CogVideoX") and width >= SMALLEST_REAL_WIDTH

    @property
    def too_small(self) -> list[str]:
        return [path for path, shape in self.shapes.items() if self.spec.rank_of(path) > min(shape)]

    @property
    def outside_attention(self) -> list[str]:
        return [path for path in self.shapes if not re.search(r"(^|\.)((self_)?attn\d*|SelfAttention)(\.|$)", path)]


class _Rule(NamedTuple):
    applies: Callable[[_Case], object]
    sentence: Callable[[_Case], str]
    source: str


RULES = (
    _Rule(
        lambda case: case.spec.alpha == 1 and case.spec.rank > 1,
        lambda case: (
            f"alpha 1 scales the update by {case.spec.scale:.3g}: the adapter will hardly learn; try {case.spec.rank // 2}"
        ),
        _COGVIDEO,
    ),
    _Rule(
        lambda case: not case.spec.rslora and case.spec.alpha != 1 and case.ratio < 0.25,
        lambda case: (
            f"alpha / rank is {case.ratio:.3g}, under 0.25: the adapter learns slowly; try alpha {case.spec.rank // 2}"
        ),
        _COGVIDEO,
    ),
    _Rule(
        lambda case: not case.spec.rslora and case.ratio > 2,
        lambda case: f"alpha / rank is {case.ratio:.3g}, over 2: training may become unstable; try alpha {case.spec.rank}",
        _COGVIDEO,
    ),
    _Rule(
        lambda case: case.is_real_cogvideox and case.spec.rank < 64,
        lambda case: f"rank {case.spec.rank} is low for a video model; try 64 or 128",
        _COGVIDEO,
    ),
    _Rule(
        lambda case: case.too_small,
        lambda case: (
            f"the rank is over the size of {len(case.too_small)} layers ({first_few(case.too_small)}): "
            "A and B hold more numbers than the update has freedom"
        ),
        f"{_LORA}, section 4.1: r is far under min(d, k)",
    ),
    _Rule(
        lambda case: case.outside_attention,
        lambda case: (
            f"{len(case.outside_attention)} targets lie outside attention ({first_few(case.outside_attention)}): "
            "larger files, and few tools expect them"
        ),
        f"{_LORA}, section 4.2 adapts attention only; so does CogVideo finetune/schemas/args.py",
    ),
)


def advise(spec: "LoraSpec", shapes: Mapping[str, tuple[int, int]], model_class: str) -> tuple[Advice, ...]:
    """Every rule that applies, as an `Advice`."""
    case = _Case(spec, shapes, model_class)
    return tuple(Advice(rule.sentence(case), rule.source) for rule in RULES if rule.applies(case))


def share_of_layer(rank: int, shape: tuple[int, int]) -> float:
    """Parameters of a pair over those of its layer: ``r (d + k) / (d k)``. Source: arXiv:2106.09685, section 4.2."""
    out_features, in_features = shape
    return rank * (out_features + in_features) / (out_features * in_features)
