"""How two adapters differ, module by module, without a dense update."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from reelora.adapters.adapter import Adapter
from reelora.adapters.compare import relative_difference
from reelora.adapters.pair import Pair

from .checks import check_ready
from .core import Core, core, grams, known_scale
from .progress import OnProgress, watched
from .sizes import Size

__all__ = ["Difference", "ModuleDifference", "diff"]

ENERGY = 0.99
CANCELS = 1e-8
"""Under this share of the energies a difference of Gram matrices is rounding; the QR decomposition of both goes further."""


@dataclass(frozen=True, kw_only=True)
class ModuleDifference:
    """How the updates ``E`` and ``F`` of one module differ."""

    norms: tuple[float, float]
    """Frobenius norms of both."""
    relative_difference: float
    """``|E - F| / |E|``; infinite if only E is zero."""
    cosine: float
    """``<E, F> / (|E| |F|)``, in [-1, 1]; 0 if one of them is zero."""
    output_overlap: float
    """Of the column spaces, what both write to: ``|U1^T U2|^2 / min(k1, k2)``, the mean squared cosine of the principal angles.

    1: the smaller space lies in the larger one; 0: orthogonal. The spaces hold 99 % of the energy of each update.
    Source: LoRA, arXiv:2106.09685, section 7.2, equation 4.
    """
    input_overlap: float
    """The same of the row spaces, what both listen to."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two adapters differ."""

    modules: Mapping[str, ModuleDifference]
    """Those that both have."""
    only_first: Mapping[str, float]
    """Norms of the modules that only the first has."""
    only_second: Mapping[str, float]

    @cached_property
    def blocks(self) -> Mapping[str, float]:
        """``|E - F| / |E|`` over each block (the name up to its first number); a module that one lacks is zero there."""
        names: dict[str, list[str]] = {}
        for name in [*self.modules, *self.only_first, *self.only_second]:
            names.setdefault(_block_of(name), []).append(name)
        return {block: self._over(held) for block, held in names.items()}

    @property
    def relative_difference(self) -> float:
        """``|E - F| / |E|`` over all modules; a module that one lacks is zero there."""
        return self._over([*self.modules, *self.only_first, *self.only_second])

    def _over(self, names: Iterable[str]) -> float:
        first, gap = zip(*(self._sizes(name) for name in names), strict=True)
        return _ratio(math.hypot(*gap), math.hypot(*first))

    def _sizes(self, name: str) -> tuple[float, float]:
        """``|E|`` and ``|E - F|``."""
        if name not in self.modules:
            lone = self.only_first.get(name, 0.0)
            return lone, lone or self.only_second.get(name, 0.0)
        row = self.modules[name]
        return row.norms[0], row.norms[0] * row.relative_difference if row.norms[0] else row.norms[1]


def diff(first: Adapter, second: Adapter, *, on_progress: OnProgress | None = None) -> Difference:
    """How two adapters differ, as trained: a scale counts.

    Raises MismatchError with every module whose shapes differ; UnknownScaleError and AdapterError for one that is not usable.
    """
    check_ready([first, second])
    common = [name for name in first.pairs if name in second.pairs]
    return Difference(
        modules={name: _compared(first.pairs[name], second.pairs[name]) for name in watched(common, on_progress)},
        only_first=_norms_of_lone(first, second),
        only_second=_norms_of_lone(second, first),
    )


def _norms_of_lone(adapter: Adapter, other: Adapter) -> dict[str, float]:
    return {name: float(core(pair).values.norm()) for name, pair in adapter.pairs.items() if name not in other.pairs}


def _compared(first: Pair, second: Pair) -> ModuleDifference:
    one, two = core(first), core(second)
    tall, wide = grams(first, second)
    product = known_scale(first) * known_scale(second) * float((tall * wide).sum())
    norms = float(one.values.norm()), float(two.values.norm())
    k, m = _held(one), _held(two)
    return ModuleDifference(
        norms=norms,
        relative_difference=_relative(first, second, norms, product),
        cosine=max(-1.0, min(1.0, product / (norms[0] * norms[1]))) if all(norms) else 0.0,
        output_overlap=_overlap((one.left / one.values)[:, :k].mT @ tall @ (two.left / two.values)[:, :m]),
        input_overlap=_overlap((one.right / one.values[:, None])[:k] @ wide @ (two.right / two.values[:, None])[:m].mT),
    )


def _relative(first: Pair, second: Pair, norms: tuple[float, float], product: float) -> float:
    squares = norms[0] ** 2 + norms[1] ** 2
    gap = squares - 2 * product
    return _ratio(math.sqrt(gap), norms[0]) if gap > CANCELS * squares else relative_difference(first, second)


def _held(whole: Core) -> int:
    """Directions that hold 99 % of the energy; none of an update of zero."""
    return Size(keep=ENERGY).rank_for(whole.tails) or 0 if float(whole.tails[0]) else 0


def _overlap(cosines: Tensor) -> float:
    return min(1.0, float(cosines.square().sum()) / min(cosines.shape)) if cosines.numel() else 0.0


def _ratio(gap: float, norm: float) -> float:
    return gap / norm if norm else math.inf if gap else 0.0


def _block_of(name: str) -> str:
    """``transformer.transformer_blocks.3`` of ``transformer.transformer_blocks.3.attn1.to_q``."""
    found = re.match(r".*?\.\d+(?=\.|$)", name)
    return found[0] if found else name
