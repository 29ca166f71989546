"""Which pairs act on which tensor of the base, and everything that does not fit."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from reelora.adapters import Adapter, Pair, split_role
from reelora.errors import MismatchError, first_few, nearest
from reelora.lora import FUSABLE, PairUses
from reelora.tensorio import TensorStore

from .base import Base

__all__ = ["Adapters", "Tensors", "match"]

Adapters = Mapping[str, tuple[Adapter, float]]
"""By file (or name), each with its strength."""
Tensors = Mapping[str, PairUses]
"""What is added to each tensor of a role, by its stored name."""

_PREFIX = "text_model."
"""In the names of CLIP's weights before transformers 5, and not since."""


def match(adapters: Adapters, base: Base) -> dict[str, Tensors]:
    """The pairs that act on each tensor, by role; nothing acts at strength 0.

    Raises MismatchError with every module of every adapter that the base has not, or has in another shape, kernel or dtype.
    """
    found: dict[str, dict[str, list[tuple[Pair, float]]]] = {role: {} for role in base.stores}
    problems: list[str] = []
    for label, (adapter, strength) in adapters.items():
        places = {name: _tensor_of(name, base.stores) for name in adapter.pairs}
        problems += [f"{label}: {line}" for line in _problems(adapter, places, base.stores)]
        for name, tensor in places.items():
            if tensor and strength:
                found[split_role(name)[0]].setdefault(tensor, []).append((adapter.pairs[name], strength))
    if problems:
        raise MismatchError("\n".join([*problems, f"It was made for another model than {base.path}, or another size of it."]))
    return {role: dict(tensors) for role, tensors in found.items()}


def _tensor_of(name: str, stores: Mapping[str, TensorStore]) -> str:
    """The stored name of a module's weight; empty where there is none."""
    role, path = split_role(name)
    spellings = (f"{path}.weight", f"{_PREFIX}{path}.weight", f"{path.removeprefix(_PREFIX)}.weight")
    return next((spelling for spelling in spellings if spelling in stores[role]), "")


def _problems(adapter: Adapter, places: Mapping[str, str], stores: Mapping[str, TensorStore]) -> Iterator[str]:
    total = len(adapter.pairs)
    if lost := [name for name, tensor in places.items() if not tensor]:
        yield f"{len(lost)} of {total} modules are not in the base: {first_few(lost)}; {_hint(*split_role(lost[0]), stores)}"
    odd: dict[str, list[str]] = {}
    for name, tensor in places.items():
        store = stores[split_role(name)[0]]
        if tensor and (problem := _misfit(adapter.pairs[name], store.shapes[tensor], store.dtypes[tensor])):
            kind, detail = problem
            odd.setdefault(kind, []).append(f"{name} ({detail})")
    for kind, found in odd.items():
        yield f"{len(found)} of {total} modules {kind}: {first_few(found)}"


def _hint(role: str, path: str, stores: Mapping[str, TensorStore]) -> str:
    """The nearest module that the base has, or the first few where none is near."""
    known = [tensor.removesuffix(".weight") for tensor in stores[role] if tensor.endswith(".weight")]
    hint = nearest(path, known)
    return hint if "did you mean" in hint else f"it has {first_few(known) or 'no weight at all'}"


def _misfit(pair: Pair, shape: Sequence[int], dtype: torch.dtype) -> tuple[str, str] | None:
    """What kind of thing is wrong with a pair for a weight, and what exactly."""
    kernel = tuple(shape[2:])
    if dtype not in FUSABLE:
        return "are stored in a dtype that cannot take an update (fuse first, then quantise)", str(dtype).removeprefix("torch.")
    if len(shape) < 2 or (shape[0], math.prod(shape[1:])) != pair.shape:
        return "have another shape", f"{tuple(shape)} in the base, {pair.shape} in the adapter"
    if math.prod((*pair.kernel, *kernel)) > 1 and pair.kernel != kernel:
        return "have another kernel", f"{kernel} in the base, {pair.kernel} in the adapter"
    return None
