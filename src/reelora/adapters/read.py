"""Adapter files of every dialect into adapters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from reelora.errors import AdapterError, ConfigError, nearest
from reelora.layouts import Reading, Slot, detect

from .adapter import Adapter, by_role, spec_of
from .checks import alphas_of, dims_of, module_problems, producer_problems, told_problems
from .claims import Claim, Dims, claims_of, contradictions
from .forms import form_of, magnitude_of
from .header import provenance_of
from .pair import Pair
from .producers import PRODUCERS
from .source import Source, open_source
from .spec import LoraSpec

__all__ = ["adapter_of", "read_adapter"]


def read_adapter(
    path_or_id: str | Path,
    *,
    alpha: float | None = None,
    producer: str | None = None,
    sat_config: str | Path | Sequence[str | Path] = (),
) -> Adapter:
    """The adapter in a file of any layout, in a folder that holds one, or at a hub id; values stay in the file.

    The scale is what ``alpha`` says; else what the file says of itself (alpha tensors, ``adapter_config.json``, its header,
    the YAMLs of a SAT training given as ``sat_config``), where two that speak must agree; else what the named ``producer``
    always uses; else what the format defines. If none of them speaks it is unknown: the adapter can be looked at, but not used
    or written.

    Raises AdapterError with everything that is wrong with names, shapes and scale, ConfigError for an impossible ``alpha`` or
    an unknown ``producer``, FileFormatError for a file that is no safetensors or torch file, OSError if there is none.
    """
    _check_arguments(alpha, producer)
    configs = (sat_config,) if isinstance(sat_config, str | Path) else tuple(sat_config)
    return adapter_of(open_source(path_or_id, sat_config=configs), alpha=alpha, producer=producer)


def adapter_of(source: Source, *, alpha: float | None = None, producer: str | None = None) -> Adapter:
    """The adapter that the tensors and settings of a source are."""
    reading = detect(source.shapes, source.metadata)
    problems, sound = module_problems(reading.modules, source)
    dims = dims_of(sound, source)
    alphas, odd = alphas_of(sound, source)
    claims, doubts = claims_of(source, alphas, dims)
    problems += [*reading.problems, *odd, *doubts, *told_problems(claims, sound, source)]
    problems += () if alpha is not None else contradictions(claims)
    problems += producer_problems(producer, claims, dims) if producer else ()
    if not problems:
        return _assemble(reading, source, *_settle(reading, claims, dims, alpha, producer))
    listed = "\n".join(f"- {problem}" for problem in problems)
    raise AdapterError(f"{source.path}, read as {reading.layout.name}, is no adapter to trust:\n{listed}")


def _assemble(
    reading: Reading, source: Source, scales: Mapping[str, float], specs: Mapping[str, LoraSpec], rule: str
) -> Adapter:
    pairs = {}
    for name, slots in reading.modules.items():
        tensors: dict[Slot, Tensor] = {slot: source.tensors[key] for slot, key in slots.items()}
        form = form_of(slots)
        assert form is not None, "module_problems comes first"
        a, b, kernel = form.factors(tensors)
        pairs[name] = Pair(a, b, scales.get(name), kernel, magnitude_of(tensors))
    return Adapter(
        pairs=pairs,
        spec=_one_spec(pairs, specs),
        layout=reading.layout.name,
        scale_source=rule,
        provenance=provenance_of(source.metadata),
        tokens={key: source.tensors[key] for key in reading.tokens},
    )


def _one_spec(pairs: Mapping[str, Pair], specs: Mapping[str, LoraSpec]) -> LoraSpec | None:
    """The spec of the only role where the file tells it, else one that describes the pairs."""
    is_told = len(specs) == len(by_role(pairs)) == 1 and all(pair.scale is not None for pair in pairs.values())
    return next(iter(specs.values())) if is_told else spec_of(pairs)


def _settle(
    reading: Reading, claims: list[Claim], dims: Dims, alpha: float | None, producer: str | None
) -> tuple[dict[str, float], dict[str, LoraSpec], str]:
    """The scale of every module that anyone knows, the specs that stand behind it, and the rule that says so."""
    told = {role: spec for claim in reversed(claims) for role, spec in claim.specs.items()}
    if alpha is not None:
        return *_with_alpha(told, dims, alpha), f"alpha={alpha:g}, as given"
    scales = {name: scale for claim in reversed(claims) for name, scale in claim.scales.items()}
    rules = [claim.source for claim in claims]
    silent = {name: dim for name, dim in dims.items() if name not in scales}
    if silent and producer is not None:
        profile = PRODUCERS[producer]
        scales |= {name: profile.alpha / dim for name, dim in silent.items() if dim}
        rules.append(f"producer {producer}: alpha {profile.alpha:g} ({profile.source})")
    elif silent and reading.layout.without_alpha:
        scales |= dict.fromkeys(silent, 1.0)
        rules.append(reading.layout.without_alpha)
    elif silent:
        known = f"{len(silent)} of {len(dims)} pairs lack it" if scales else "the file does not say"
        return scales, {}, f"unknown: {known}; a {reading.layout.name} file stores alpha in {reading.layout.strength}"
    specs = told if told and all(math.isclose(s, scales[n], rel_tol=1e-9) for n, s in _spec_scales(told, dims).items()) else {}
    return scales, specs, "; ".join(rules)


def _spec_scales(specs: Mapping[str, LoraSpec], dims: Dims) -> dict[str, float]:
    return {
        f"{role}.{path}": specs[role].scale_of(path) for role, paths in by_role(dims).items() if role in specs for path in paths
    }


def _with_alpha(told: Mapping[str, LoraSpec], dims: Dims, alpha: float) -> tuple[dict[str, float], dict[str, LoraSpec]]:
    """Scales with this alpha everywhere; what the settings say about ranks and rsLoRA stays."""
    if set(told) == set(by_role(dims)):
        specs = {role: replace(spec, alpha=alpha, alpha_pattern={}) for role, spec in told.items()}
        return _spec_scales(specs, dims), specs
    return {name: alpha / dim if dim else 1.0 for name, dim in dims.items()}, {}


def _check_arguments(alpha: float | None, producer: str | None) -> None:
    if alpha is not None:
        LoraSpec(alpha=alpha)  # raises for what no alpha can be
    if alpha is not None and producer is not None:
        raise ConfigError("Give alpha= or producer=, not both.")
    if producer is not None and producer not in PRODUCERS:
        raise ConfigError(f"No producer is called {producer!r}: {nearest(producer, PRODUCERS)}")
