"""Adapter files of every dialect into adapters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from reelora.errors import AdapterError, ConfigError, first_few, nearest
from reelora.layouts import Layout, Reading, Slot, detect

from .adapter import Adapter, by_role, spec_of
from .checks import NUMBERS, alphas_of, module_problems, producer_problems, stored_of, told_problems
from .claims import Claim, Dims, Stored, claims_of, contradictions
from .forms import magnitude_of
from .header import provenance_of
from .pair import Pair
from .producers import PRODUCERS
from .source import Source, open_source
from .spec import LoraSpec

__all__ = ["adapter_of", "read_adapter"]

MAX_TENSORS = 50_000
"""Of one adapter; the largest whole checkpoints have some thousand."""


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
    if len(source.shapes) > MAX_TENSORS:
        raise AdapterError(f"{source.path} holds {len(source.shapes):,} tensors; no adapter has more than {MAX_TENSORS:,}.")
    reading = detect(source.shapes, source.metadata)
    problems, sound = module_problems(reading.modules, source)
    alphas, odd = alphas_of(sound, source)
    stored = stored_of(sound, source, alphas, reading.layout)
    claims, doubts = claims_of(stored)
    problems += [*reading.problems, *odd, *doubts, *told_problems(claims, stored)]
    problems += () if alpha is not None else contradictions(claims)
    problems += producer_problems(producer, claims, stored.dims) if producer else ()
    if reading.layout is not None and not problems:
        scales, specs, rule = _settle(reading.layout, claims, stored, alpha, producer)
        return _assemble(reading, stored, scales, specs, rule, reading.layout.name)
    listed = "\n".join(f"- {problem}" for problem in problems)
    read_as = f", read as {reading.layout.name}," if reading.layout else ""
    raise AdapterError(f"{source.path}{read_as} is no adapter to trust:\n{listed}")


def _assemble(
    reading: Reading, stored: Stored, scales: Mapping[str, float], specs: Mapping[str, LoraSpec], rule: str, layout: str
) -> Adapter:
    source, pairs = stored.source, {}
    for name, slots in stored.modules.items():
        tensors: dict[Slot, Tensor] = {slot: source.tensors[key] for slot, key in slots.items() if slot not in NUMBERS}
        a, b, kernel = stored.forms[name].factors(tensors)
        pairs[name] = Pair(a, b, scales.get(name), kernel, magnitude_of(tensors))
    return Adapter(
        pairs=pairs,
        spec=_one_spec(pairs, specs),
        layout=layout,
        scale_source=rule,
        provenance=provenance_of(source.metadata),
        tokens={key: source.tensors[key] for key in reading.tokens},
    )


def _one_spec(pairs: Mapping[str, Pair], specs: Mapping[str, LoraSpec]) -> LoraSpec | None:
    """The spec of the only role where the file tells it and A and B have its rank, else one that describes the pairs."""
    roles = by_role(pairs)
    if len(specs) != 1 or len(roles) != 1 or any(pair.scale is None for pair in pairs.values()):
        return spec_of(pairs)
    (spec,), (held,) = specs.values(), roles.values()
    return spec if all(spec.rank_of(path) == pair.rank for path, pair in held.items()) else spec_of(pairs)


def _settle(
    layout: Layout, claims: list[Claim], stored: Stored, alpha: float | None, producer: str | None
) -> tuple[dict[str, float], dict[str, LoraSpec], str]:
    """The scale of every module that anyone knows, the specs that stand behind it, and the rule that says so."""
    dims = stored.dims
    told = {role: spec for claim in reversed(claims) for role, spec in claim.specs.items()}
    if alpha is not None:
        return _with_alpha(told, stored, alpha)
    scales = {name: scale for claim in reversed(claims) for name, scale in claim.scales.items()}
    rules = [claim.source for claim in claims if claim.scales]
    silent = {name: dim for name, dim in dims.items() if name not in scales}
    if silent and producer is not None:
        profile = PRODUCERS[producer]
        scales |= {name: profile.alpha / dim for name, dim in silent.items() if dim}
        rules.append(f"producer {producer}: alpha {profile.alpha:g} ({profile.source})")
    elif silent and layout.without_alpha:
        scales |= dict.fromkeys(silent, 1.0)
        rules.append(layout.without_alpha)
    elif silent:
        known = f"{len(silent)} of {len(dims)} pairs lack it" if scales else "the file does not say"
        return scales, {}, f"unknown: {known} (alpha in the {layout.name} layout: {layout.strength})"
    specs = told if told and all(math.isclose(s, scales[n], rel_tol=1e-9) for n, s in _spec_scales(told, dims).items()) else {}
    return scales, specs, "; ".join(rules)


def _spec_scales(specs: Mapping[str, LoraSpec], dims: Dims) -> dict[str, float]:
    return {
        f"{role}.{path}": specs[role].scale_of(path) for role, paths in by_role(dims).items() if role in specs for path in paths
    }


def _with_alpha(
    told: Mapping[str, LoraSpec], stored: Stored, alpha: float
) -> tuple[dict[str, float], dict[str, LoraSpec], str]:
    """Scales with this alpha wherever alpha has a meaning; what the settings say about ranks and rsLoRA stays."""
    rule = f"alpha={alpha:g}, as given"
    if set(told) == set(by_role(stored.dims)):
        specs = {role: replace(spec, alpha=alpha, alpha_pattern={}) for role, spec in told.items()}
        return _spec_scales(specs, stored.dims), specs, rule
    scales = {name: alpha / dim for name, dim in stored.dims.items() if dim}
    if not scales:
        raise ConfigError(
            f"alpha={alpha:g} has no meaning here: every module is a LoKr of two whole factors ({first_few([*stored.dims])}), "
            "and nothing says what alpha would be divided by. Leave alpha out."
        )
    rule += f"; scale 1 by LyCORIS' definition for {len(stored.defined)} LoKr of two whole factors" if stored.defined else ""
    return scales | stored.defined, {}, rule


def _check_arguments(alpha: float | None, producer: str | None) -> None:
    if alpha is not None:
        LoraSpec(alpha=alpha)  # raises for what no alpha can be
    if alpha is not None and producer is not None:
        raise ConfigError("Give alpha= or producer=, not both.")
    if producer is not None and producer not in PRODUCERS:
        raise ConfigError(f"No producer is called {producer!r}: {nearest(producer, PRODUCERS)}")
