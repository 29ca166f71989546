"""What a file says about its strength: every source that speaks, and whether they agree.

The order of the sources says where to look first; where two of them speak of one module and differ, nothing is believed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reelora.errors import AdapterError, first_few

from .header import specs_of
from .source import CONFIG, Source
from .spec import LoraSpec

__all__ = ["Claim", "Dims", "claims_of", "contradictions"]

Dims = Mapping[str, int | None]
"""What alpha is divided by in each module (the rank, for a plain LoRA); None where the scale is 1 by definition."""

RELATIVE_TOLERANCE = 1e-6
"""Two scales that differ by less are one number in float32."""

_BARE_ALPHAS = ("lora_alpha", "network_alpha", "alpha")


@dataclass(frozen=True)
class Claim:
    """One source that says how strong some modules are."""

    source: str
    scales: Mapping[str, float]
    specs: Mapping[str, LoraSpec] = field(default_factory=dict)
    """The settings by role, where the source tells all of them."""
    is_dora: bool = False


def claims_of(source: Source, alphas: Mapping[str, float], dims: Dims) -> tuple[list[Claim], list[str]]:
    """Every source that speaks, in the order in which they are believed, and what is wrong with any of them."""
    claims, problems = [], []
    for read in (_tensors, _peft_config, _header, _finetrainers, _kohya, _bare, _sat):
        try:
            claims += read(source, alphas, dims)
        except AdapterError as error:
            problems.append(str(error))
    return claims, problems


def contradictions(claims: list[Claim]) -> Iterator[str]:
    """Modules of which two sources say different scales."""
    for index, claim in enumerate(claims):
        for other in claims[index + 1 :]:
            odd = [
                f"{name} ({claim.scales[name]:g} and {other.scales[name]:g})"
                for name in claim.scales.keys() & other.scales.keys()
                if not math.isclose(claim.scales[name], other.scales[name], rel_tol=RELATIVE_TOLERANCE)
            ]
            if odd:
                what = (
                    f"{claim.source} and {other.source} disagree about the scale of {len(odd)} pairs: {first_few(sorted(odd))}"
                )
                yield f"{what}. Say which alpha is right with alpha="


def _tensors(source: Source, alphas: Mapping[str, float], dims: Dims) -> Iterator[Claim]:
    scales = {name: alpha / dim for name, alpha in alphas.items() if (dim := dims[name]) is not None}
    free = {name: 1.0 for name, dim in dims.items() if dim is None}
    if scales or free:
        yield Claim("the file's alpha tensors" if scales else "LyCORIS: a LoKr of two whole factors has scale 1", scales | free)


def _peft_config(source: Source, alphas: Mapping[str, float], dims: Dims) -> Iterator[Claim]:
    if source.config is not None:
        yield from _of_specs(f"{CONFIG} beside it", source.config, dims)


def _header(source: Source, alphas: Mapping[str, float], dims: Dims) -> Iterator[Claim]:
    if (text := source.metadata.get("lora_adapter_metadata")) is not None:
        yield from _of_specs("the file's lora_adapter_metadata", _object("lora_adapter_metadata", text), dims)


def _finetrainers(source: Source, alphas: Mapping[str, float], dims: Dims) -> Iterator[Claim]:
    if (text := source.metadata.get("lora_config")) is not None:
        yield from _of_specs("the file's lora_config", _object("lora_config", text), dims)


def _of_specs(name: str, fields: Mapping[str, Any], dims: Dims) -> Iterator[Claim]:
    specs, problems = specs_of(fields, dims)
    if problems:
        raise AdapterError("; ".join(f"{name}: {problem}" for problem in problems))
    scales = {f"{role}.{path}": spec.scale_of(path) for role, (spec, paths) in specs.items() for path in paths}
    if scales:
        is_dora = any(value is True for key, value in fields.items() if key.rpartition(".")[2] == "use_dora")
        yield Claim(name, scales, {role: spec for role, (spec, _) in specs.items()}, is_dora)


def _kohya(source: Source, alphas: Mapping[str, float], dims: Dims) -> Iterator[Claim]:
    """``ss_network_alpha``, if it is a number and all ranks are ``ss_network_dim``; after a resize both are a word."""
    alpha, dim = (_number(source.metadata.get(key)) for key in ("ss_network_alpha", "ss_network_dim"))
    if alpha and dim and set(dims.values()) == {int(dim)}:
        yield Claim("the file's ss_network_alpha", dict.fromkeys(dims, alpha / dim))


def _bare(source: Source, alphas: Mapping[str, float], dims: Dims) -> Iterator[Claim]:
    for key in _BARE_ALPHAS:
        if alpha := _number(source.metadata.get(key)):
            yield Claim(f"the header's {key}", {name: alpha / dim for name, dim in dims.items() if dim})


def _sat(source: Source, alphas: Mapping[str, float], dims: Dims) -> Iterator[Claim]:
    if source.sat_lora is None:
        return
    alpha, rank = source.sat_lora
    if odd := sorted({dim for dim in dims.values() if dim != rank}, key=str):
        raise AdapterError(f"the YAML says r {rank}, the tensors have {', '.join(map(str, odd))}")
    yield Claim(f"the YAML's lora_config: alpha {alpha:g}, r {rank}", dict.fromkeys(dims, alpha / rank))


def _object(name: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"The header entry {name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"The header entry {name} has to be a JSON object, not {type(value).__name__}")
    return value


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
