"""Adapters as results of arithmetic."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from reelora.adapters.adapter import Adapter, spec_of
from reelora.adapters.pair import Pair
from reelora.errors import AdapterError, first_few

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
        spec=spec_of(pairs),
        layout="memory",
        scale_source=scale_source,
        provenance=provenance,
        tokens=tokens,
    )
