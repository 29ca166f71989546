"""The tensors of a model as they will be written, under our names: cast, and with its LoRA merged in."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reelora.adapters import Adapter, Pair, split_role
from reelora.components import ModelFiles, RoleFiles
from reelora.layouts import Cut
from reelora.lora import fuse_into
from reelora.tensorio import DeferredTensor, empty_apart

from .plan import KeyRow

__all__ = ["origin_of", "unused_rows", "values_of"]


def values_of(model: ModelFiles, role: str, *, dtype: torch.dtype | None, merges: bool) -> dict[str, DeferredTensor]:
    """The tensors of a role; floating ones in ``dtype`` if that is asked for."""
    adapter = model.adapter if merges else None
    pairs = _pairs_of(adapter, role)
    merged = {name: _merged(tensor, pairs.get(name)) for name, tensor in model.roles[role].tensors.items()}
    return {name: cast(tensor, dtype) for name, tensor in merged.items()}


def cast(tensor: DeferredTensor, dtype: torch.dtype | None) -> DeferredTensor:
    """The same values in another dtype, if they are floating."""
    if dtype is None or dtype == tensor.dtype or not tensor.dtype.is_floating_point:
        return tensor
    return DeferredTensor(tensor.shape, dtype, lambda: tensor.compute().to(dtype))


def origin_of(part: RoleFiles, name: str, *, is_merged: bool) -> tuple[tuple[str, ...], str]:
    """Where one of our tensors comes from and how, for the report."""
    cut = part.cuts.get(name)
    how = _how(cut) + (" with the LoRA merged in" if is_merged else "")
    return (f"{part.role}.{cut.key if cut else name}",), how


def unused_rows(model: ModelFiles) -> list[KeyRow]:
    """Tensors of the source that are not written, and why."""
    return [
        KeyRow(name="", sources=(f"{role}.{name}",), how=f"left out: {reason}")
        for role, part in model.roles.items()
        for name, reason in part.left_out.items()
    ]


def merged_names(model: ModelFiles, *, merges: bool) -> set[str]:
    """Tensors of the transformer that a LoRA changes."""
    return set(_pairs_of(model.adapter if merges else None, "transformer"))


def _how(cut: Cut | None) -> str:
    if cut is None or cut.num_chunks == 1:
        return "copy"
    return f"chunks {', '.join(map(str, cut.chunks))} of {cut.num_chunks} along the rows"


def _pairs_of(adapter: Adapter | None, role: str) -> Mapping[str, Pair]:
    """Pairs by the name of the weight that they change."""
    split = {split_role(name): pair for name, pair in (adapter.pairs.items() if adapter else ())}
    return {f"{path}.weight": pair for (its_role, path), pair in split.items() if its_role == role}


def _merged(weight: DeferredTensor, pair: Pair | None) -> DeferredTensor:
    if pair is None:
        return weight

    def compute() -> Tensor:
        return fuse_into(weight.compute(), [(pair, 1.0)], out=empty_apart(weight.shape, weight.dtype))

    return DeferredTensor(weight.shape, weight.dtype, compute)
