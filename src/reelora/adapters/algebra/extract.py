"""An adapter out of two checkpoints."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from reelora.adapters.adapter import ROLES, Adapter
from reelora.adapters.spec import LoraSpec
from reelora.errors import AdapterError, ConfigError, MismatchError, first_few, nearest
from reelora.tensorio import open_tensors

from .core import Reduced
from .kept import Kept
from .low_rank import reduce_dense, squared_norm
from .methods import draw_for
from .outcome import assemble
from .progress import OnProgress, watched
from .sizes import Size

__all__ = ["Weights", "changed_elsewhere", "extract"]

Tensors = Mapping[str, Tensor]
Weights = Tensors | str | Path
"""Tensors by name, or a safetensors file, an index or a folder with one of them."""

EVERYWHERE = ".*"
SUFFIX = ".weight"


def extract(
    base: Weights,
    tuned: Weights,
    rank: int | None = None,
    keep: float | None = None,
    *,
    role: str = "transformer",
    target_modules: tuple[str, ...] | str = EVERYWHERE,
    dtype: torch.dtype = torch.float32,
    on_progress: OnProgress | None = None,
) -> Adapter:
    """The adapter that turns ``base`` into ``tuned`` as nearly as it can: each changed matrix as the pair of its difference.

    Exactly one is given: ``rank``, the rank of every pair (or all that a smaller matrix has), or ``keep``, the smallest rank of
    each module that keeps this share of the energy of its difference. Differences are taken in float32, one module at a time,
    and reduced by a randomised singular value decomposition that proves how good it is, or else by the full one. Names are the
    model's own, without ``role``; ``target_modules`` narrows them as in a LoraSpec. The result has scale 1.

    Matrices that did not change are left out. What changed and no pair can hold (norms, biases, kernels, other modules) is
    counted in the provenance under ``not_extracted``; `changed_elsewhere` lists it.

    Raises ConfigError for impossible settings, MismatchError with all names and shapes that differ, AdapterError if no matrix
    changed, or with all that hold NaN or infinite values.
    """
    if role not in ROLES:
        raise ConfigError(f"No role is called {role!r}: {nearest(role, ROLES)}")
    size, spec = Size(rank=rank, keep=keep), LoraSpec(target_modules=target_modules)
    base, tuned = _opened(base), _opened(tuned)
    _check_same(base, tuned)
    reduced = _reductions(base, tuned, watched(_matrices(base, spec), on_progress), size, dtype)
    elsewhere = changed_elsewhere(base, tuned, target_modules=target_modules)
    return assemble(
        {f"{role}.{path}": entry.pair for path, entry in reduced.items()},
        scale_source="extracted: the strength is in the factors",
        provenance={"energy_kept": str(Kept.of(reduced)), "not_extracted": _told(elsewhere)},
    )


def changed_elsewhere(base: Weights, tuned: Weights, *, target_modules: tuple[str, ...] | str = EVERYWHERE) -> dict[str, float]:
    """The relative change ``|tuned - base| / |base|`` of every changed tensor that `extract` cannot put into a pair."""
    base, tuned = _opened(base), _opened(tuned)
    _check_same(base, tuned)
    held = {path + SUFFIX for path in _matrices(base, LoraSpec(target_modules=target_modules))}
    changes = {name: _relative_change(base[name], tuned[name]) for name in base if name not in held}
    return {name: change for name, change in changes.items() if change}


def _reductions(base: Tensors, tuned: Tensors, paths: Iterable[str], size: Size, dtype: torch.dtype) -> dict[str, Reduced]:
    """The pairs of what changed; once a sick matrix is found, the others are only looked at, to name them all."""
    reduced, sick = {}, []
    for path in paths:
        change = _difference(base[path + SUFFIX], tuned[path + SUFFIX])
        if not math.isfinite(energy := squared_norm(change)):
            sick.append(path)
        elif energy and not sick:
            reduced[path] = reduce_dense(change, size, draw_for(0, path), dtype=dtype)
    if sick:
        raise AdapterError(f"{len(sick)} matrices hold NaN or infinite values in base or tuned: {first_few(sick)}.")
    if not reduced:
        raise AdapterError("No targeted matrix differs between base and tuned: there is nothing to extract.")
    return reduced


def _difference(base: Tensor, tuned: Tensor) -> Tensor:
    """``tuned - base`` in float32; of float64 weights, subtracted before they are rounded."""
    wide = torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
    return tuned.to(wide, copy=True).sub_(base.to(wide)).float()


def _relative_change(base: Tensor, tuned: Tensor) -> float:
    change = math.sqrt(squared_norm(_difference(base, tuned)))
    norm = math.sqrt(squared_norm(base.float()))
    return change / norm if norm else math.inf if change else 0.0


def _opened(weights: Weights) -> Tensors:
    return weights if isinstance(weights, Mapping) else open_tensors(Path(weights))


def _matrices(weights: Tensors, spec: LoraSpec) -> list[str]:
    """The paths of the modules whose weight is a matrix and that are meant."""
    paths = [name.removesuffix(SUFFIX) for name in weights if name.endswith(SUFFIX) and weights[name].ndim == 2]
    return [path for path in paths if spec.targets(path)]


def _check_same(base: Tensors, tuned: Tensors) -> None:
    """Raise MismatchError unless both have the same names with the same shapes."""
    odd = {
        "only in base": [name for name in base if name not in tuned],
        "only in tuned": [name for name in tuned if name not in base],
        "of another shape": [
            f"{name} ({tuple(base[name].shape)} and {tuple(tuned[name].shape)})"
            for name in base
            if name in tuned and base[name].shape != tuned[name].shape
        ],
    }
    if problems := [f"{len(names)} tensors are {what}: {first_few(names)}" for what, names in odd.items() if names]:
        raise MismatchError("These are not two states of one model:\n" + "\n".join(f"- {problem}" for problem in problems))


def _told(elsewhere: Mapping[str, float]) -> str:
    """What was left out, the largest change first."""
    names = sorted(elsewhere, key=elsewhere.__getitem__, reverse=True)
    listed = first_few([f"{name} (changed by {elsewhere[name]:.2g} of itself)" for name in names])
    return f"{len(names)} tensors that no pair can hold: {listed}" if names else "nothing else changed"
