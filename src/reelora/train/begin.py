"""Going on with an adapter that was trained before."""

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from reelora.adapters import Adapter, LoraSpec, Pair, split_role
from reelora.lora import load_into

__all__ = ["begin_from"]


def begin_from(model: nn.Module, adapter: Adapter, spec: LoraSpec) -> None:
    """Put an adapter's weights into the branches that ``spec`` attached to ``model``, at the strength it was trained with.

    Where the branches have another scale than the adapter, B takes up the difference, so that the update stays the same.
    Raises UnknownScaleError while nobody knows the adapter's strength, MismatchError with every module, rank and target that
    differs, AdapterError for NaN and for a DoRA; then nothing has changed.
    """
    adapter.check_usable()
    adapter.check_plain()
    load_into(model, replace(adapter, pairs=_at_scales_of(spec, adapter.pairs)))


def _at_scales_of(spec: LoraSpec, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    return {name: _at_scale(pair, spec.scale_of(split_role(name)[1])) for name, pair in pairs.items()}


def _at_scale(pair: Pair, scale: float) -> Pair:
    """The same update with another scale."""
    assert pair.scale is not None, "checked before"
    return pair if pair.scale == scale else Pair(pair.a, pair.b.float() * (pair.scale / scale), scale)
