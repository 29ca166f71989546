"""Adapter files into adapters."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from reelora.errors import AdapterError, ConfigError, first_few, nearest
from reelora.tensorio import TensorStore, open_tensors

from . import keys
from .adapter import Adapter, Pair, by_role, pair_problem, split_role
from .header import provenance_of, specs_of
from .producers import PRODUCERS
from .spec import LoraSpec

__all__ = ["read_adapter"]

Sides = Mapping[str, Mapping[keys.Side, str]]
Specs = Mapping[str, LoraSpec]
"""The spec of every role whose strength is known."""


def read_adapter(path: str | Path, *, alpha: float | None = None, producer: str | None = None) -> Adapter:
    """The adapter in a safetensors file of diffusers' layout, or in a folder that holds exactly one; values stay in the file.

    The scale is what ``alpha`` says, else what the header's ``lora_adapter_metadata`` says, else what the named ``producer``
    always uses. If none of them speaks it is unknown: the adapter can be looked at, but not used or written.
    Raises AdapterError with everything that is wrong with the tensors and the header, ConfigError for an impossible ``alpha``
    or an unknown ``producer``, FileFormatError for a file that is no safetensors, OSError if there is none.
    """
    _check_arguments(alpha, producer)
    store = open_tensors(Path(path))
    sides, strangers = keys.pair_up(store)
    whole = {name: side for name, side in sides.items() if len(side) == 2}
    told, problems = specs_of(store.metadata, whole)
    problems += _key_problems(sides, strangers, store.shapes)
    if not problems:
        ranks = {name: store.shapes[side["A"]][0] for name, side in whole.items()}
        problems += _rank_problems(told, ranks)
        problems += _producer_problems(producer, told, ranks) if producer else []
    if problems:
        raise AdapterError(f"{store.path} is no adapter to trust:\n" + "\n".join(f"- {problem}" for problem in problems))
    return _adapter(store, whole, *_settle(told, ranks, alpha, producer))


def _adapter(store: TensorStore, sides: Sides, specs: Specs, source: str) -> Adapter:
    pairs = {}
    for name, side in sides.items():
        role, path = split_role(name)
        pairs[name] = Pair(store[side["A"]], store[side["B"]], specs[role].scale_of(path) if role in specs else None)
    provenance = provenance_of(store.metadata)
    return Adapter(pairs=pairs, spec=_one_spec(pairs, specs), layout=keys.LAYOUT, scale_source=source, provenance=provenance)


def _one_spec(pairs: Mapping[str, Pair], specs: Specs) -> LoraSpec | None:
    """The spec of the only role; of several roles, one over their full names; None as long as any scale is unknown."""
    scales = {name: pair.scale for name, pair in pairs.items() if pair.scale is not None}
    if len(scales) < len(pairs):
        return None
    if len(specs) == 1:
        return next(iter(specs.values()))
    return LoraSpec.describing({name: pair.rank for name, pair in pairs.items()}, scales)


def _settle(told: Specs, ranks: Mapping[str, int], alpha: float | None, producer: str | None) -> tuple[Specs, str]:
    """The spec of every role whose scale is known, and the rule that says so."""
    if alpha is not None:
        return _with_alpha(told, ranks, alpha), f"alpha={alpha:g}, as given"
    if told:
        return told, "the file's lora_adapter_metadata"
    if producer is not None:
        profile = PRODUCERS[producer]
        return _with_alpha(told, ranks, profile.alpha), f"producer {producer}: alpha {profile.alpha:g} ({profile.source})"
    return {}, "unknown: the file has no lora_adapter_metadata with an alpha"


def _with_alpha(told: Specs, ranks: Mapping[str, int], alpha: float) -> Specs:
    """Specs of all roles with this alpha everywhere; what the header says about ranks and rsLoRA stays."""
    bare = {role: LoraSpec.describing(paths, dict.fromkeys(paths, 1.0)) for role, paths in by_role(ranks).items()}
    return {role: replace(spec, alpha=alpha, alpha_pattern={}) for role, spec in (bare | dict(told)).items()}


def _check_arguments(alpha: float | None, producer: str | None) -> None:
    if alpha is not None:
        LoraSpec(alpha=alpha)  # raises for what no alpha can be
    if alpha is not None and producer is not None:
        raise ConfigError("Give alpha= or producer=, not both.")
    if producer is not None and producer not in PRODUCERS:
        raise ConfigError(f"No producer is called {producer!r}: {nearest(producer, PRODUCERS)}")


def _key_problems(sides: Sides, strangers: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if not sides:
        yield "it has no pair at all, that is no two tensors <role>.<module>.lora_A.weight and lora_B.weight"
    if strangers:
        yield f"{len(strangers)} tensors are no part of a pair: {first_few(strangers)}"
    if halves := [next(iter(side.values())) for side in sides.values() if len(side) == 1]:
        yield f"{len(halves)} pairs lack their other half: {first_few(halves)}"
    odd = {side["A"]: pair_problem(shapes[side["A"]], shapes[side["B"]]) for side in sides.values() if len(side) == 2}
    if odd := [f"{key}: {problem}" for key, problem in odd.items() if problem]:
        yield f"{len(odd)} pairs do not fit together: {first_few(odd)}"


def _rank_problems(told: Specs, ranks: Mapping[str, int]) -> Iterator[str]:
    expected = {name: told[role].rank_of(path) for name in ranks for role, path in [split_role(name)] if role in told}
    if odd := [f"{name} ({ranks[name]}, not {rank})" for name, rank in expected.items() if ranks[name] != rank]:
        yield f"{len(odd)} pairs have another rank than the header says: {first_few(odd)}"


def _producer_problems(producer: str, told: Specs, ranks: Mapping[str, int]) -> Iterator[str]:
    """A profile that contradicts the file: another rank than it always uses, or another scale than the header's."""
    profile = PRODUCERS[producer]
    if profile.rank and (odd := sorted({rank for rank in ranks.values() if rank != profile.rank})):
        yield f"{producer} always uses rank {profile.rank}, the file has {', '.join(map(str, odd))}; give alpha= instead"
    scales = {name: told[role].scale_of(path) for name in ranks for role, path in [split_role(name)] if role in told}
    if odd := [f"{name} ({scale:g})" for name, scale in scales.items() if scale != profile.alpha / ranks[name]]:
        yield f"{len(odd)} pairs have another scale by the header than by {producer}: {first_few(odd)}; give alpha= to decide"
