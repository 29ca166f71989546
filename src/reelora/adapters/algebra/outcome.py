"""Adapters as results of arithmetic."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from reelora.adapters.adapter import Adapter, split_role
from reelora.adapters.pair import Pair
from reelora.adapters.spec import LoraSpec
from reelora.errors import AdapterError, first_few

from .core import known_scale

__all__ = ["assemble"]


def assemble(
    pairs: Mapping[str, Pair],
    *,
    scale_source: str,
    provenance: Mapping[str, str],
    tokens: Mapping[str, Tensor] = MappingProxyType({}),
) -> Adapter:
    """An adapter that was worked out here; AdapterError if its numbers are too large for its dtype."""
    if bad := [name for name, pair in pairs.items() if not pair.is_finite]:
        raise AdapterError(
            f"{len(bad)} of {len(pairs)} modules are too large for {pairs[bad[0]].b.dtype}: {first_few(bad)}. "
            "Take a wider dtype or smaller strengths."
        )
    return Adapter(
        pairs=pairs,
        spec=_spec(pairs),
        layout="memory",
        scale_source=scale_source,
        provenance=provenance,
        tokens=tokens,
    )


def _spec(pairs: Mapping[str, Pair]) -> LoraSpec:
    """A spec that describes every pair: by module path for one role, by full name for several."""
    roles = {split_role(name)[0] for name in pairs}
    named = {split_role(name)[1] if len(roles) == 1 else name: pair for name, pair in pairs.items()}
    ranks = {path: pair.rank for path, pair in named.items()}
    return LoraSpec.describing(ranks, {path: known_scale(pair) for path, pair in named.items()})
