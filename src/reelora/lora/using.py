"""Adapters on a model for the length of a block."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from reelora.adapters import Adapter, Pair, split_role
from reelora.errors import ConfigError, MismatchError, first_few

from .branch import StackedLinear
from .model import linears_of, role_of, swap

__all__ = ["using"]

Uses = Sequence[tuple[Adapter, float]]


@contextmanager
def using(model: nn.Module, adapters: Uses) -> Iterator[None]:
    """Run a model with adapters at their strengths (1.0: as trained, 0: off); afterwards it is exactly what it was before.

    All active adapters of one Linear act as one branch. Where none acts, or all are off, the original module object runs.
    Everything is checked first: MismatchError for modules that the model lacks or that have another shape,
    UnknownScaleError for an adapter that does not know its scale, AdapterError for NaN, infinite values and a DoRA, ConfigError
    for a strength that is no finite number.
    """
    linears = linears_of(model)
    _check(model, linears, adapters)
    active = _active(adapters)
    branches = {path: _stack(linears[path], uses) for path, uses in active.items()}
    swap(model, branches)
    try:
        yield
    finally:
        swap(model, {path: branch.release() for path, branch in branches.items()})


def _active(adapters: Uses) -> dict[str, list[tuple[Pair, float]]]:
    """The pairs that act on each path, with their strengths."""
    active: dict[str, list[tuple[Pair, float]]] = {}
    for adapter, strength in adapters:
        for name, pair in adapter.pairs.items() if strength else ():
            active.setdefault(split_role(name)[1], []).append((pair, strength))
    return active


def _stack(linear: nn.Linear, uses: Sequence[tuple[Pair, float]]) -> StackedLinear:
    gains = [pair.scale * strength for pair, strength in uses if pair.scale is not None]
    return StackedLinear(linear, [pair for pair, _ in uses], gains)


def _check(model: nn.Module, linears: Mapping[str, nn.Linear], adapters: Uses) -> None:
    if odd := [strength for _, strength in adapters if not math.isfinite(strength)]:
        raise ConfigError(f"A strength is {odd[0]}: it has to be a finite number (1.0: as trained, 0: off).")
    role = role_of(model)
    shapes = {f"{role}.{path}": (linear.out_features, linear.in_features) for path, linear in linears.items()}
    for adapter, _ in adapters:
        if problems := list(_misfits(adapter, shapes, type(model).__name__)):
            raise MismatchError("\n".join([*problems, "It was made for another model, or for another size of this one."]))
        adapter.check_usable()
        adapter.check_plain()


def _misfits(adapter: Adapter, shapes: Mapping[str, tuple[int, int]], model_class: str) -> Iterator[str]:
    total = len(adapter.pairs)
    lost = [name for name in adapter.pairs if name not in shapes]
    wrong = {name: pair.shape for name, pair in adapter.pairs.items() if name in shapes and pair.shape != shapes[name]}
    if lost:
        yield f"{len(lost)} of {total} adapter paths are no Linear of {model_class}, first {first_few(lost)}"
        yield from _depth_hints(adapter.pairs, shapes)
    if wrong:
        odd = [f"{name} is {shape}, the model's is {shapes[name]}" for name, shape in wrong.items()]
        yield f"{len(odd)} of {total} pairs have another (out, in): {first_few(odd)}"


def _depth_hints(names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    known_depths = _depths(known)
    for stem, depth in _depths(names).items():
        if depth > known_depths.get(stem, depth):
            yield f"The model has {known_depths[stem]} {stem}, the adapter at least {depth}."


def _depths(names: Iterable[str]) -> dict[str, int]:
    """How many blocks of each kind the names speak of: ``transformer.transformer_blocks.29.`` makes 30."""
    depths: dict[str, int] = {}
    for name in names:
        if match := re.match(r"\w+\.(\w+)\.(\d+)\.", name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths
