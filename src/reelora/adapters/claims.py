"""What a file says about its strength: every source that speaks, and whether they agree.

The order of the sources says where to look first; where two of them speak of one module and differ, nothing is believed.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from reelora.errors import AdapterError, FileFormatError, first_few
from reelora.layouts import Slot
from reelora.tensorio import parse_json, shown

from .forms import Form
from .header import specs_of
from .source import CONFIG, Source
from .spec import LoraSpec

__all__ = ["Claim", "Dims", "Modules", "Stored", "claims_of", "contradictions"]

Modules = Mapping[str, Mapping[Slot, str]]
"""Our module name, slot, and the tensor that has it."""

Dims = Mapping[str, int | None]
"""What alpha is divided by in each module (the rank, for a plain LoRA); None for a LoKr of two whole factors."""

RELATIVE_TOLERANCE = 1e-6
"""Two scales that differ by less are one number in float32."""

_BARE_ALPHAS = ("lora_alpha", "network_alpha", "alpha")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the tensors of a file say, before any of its settings is believed."""

    source: Source
    modules: Modules
    forms: Mapping[str, Form]
    """How each module is stored."""
    dims: Dims
    alphas: Mapping[str, float]
    """The stored alphas, by module."""
    scale_of_whole_lokr: float | None

    @property
    def defined(self) -> dict[str, float]:
        """Scales that the format defines, whatever alpha is."""
        scale = self.scale_of_whole_lokr
        return {} if scale is None else {name: scale for name, dim in self.dims.items() if dim is None}


@dataclass(frozen=True)
class Claim:
    """One source that says how some modules were trained."""

    source: str
    scales: Mapping[str, float] = field(default_factory=dict)
    specs: Mapping[str, LoraSpec] = field(default_factory=dict)
    """The settings by role, where the source tells all of them."""
    ranks: Mapping[str, float] = field(default_factory=dict)
    """What it says alpha is divided by."""
    doras: frozenset[str] = frozenset()
    """Modules that it says are a DoRA."""
    tolerance: float = RELATIVE_TOLERANCE
    """How exact its numbers are."""
    doubt: str = ""
    """Why what it says cannot be believed, unless an alpha is given."""


def claims_of(stored: Stored) -> tuple[list[Claim], list[str]]:
    """Every source that speaks, in the order in which they are believed, and what is wrong with any of them."""
    claims, problems = [], []
    for read in (_tensors, _peft_config, _header, _finetrainers, _kohya, _bare, _sat, _cloneofsimo):
        try:
            claims += read(stored)
        except AdapterError as error:
            problems.append(str(error))
    return claims, problems


def contradictions(claims: list[Claim]) -> Iterator[str]:
    """What only an alpha that is given can settle: modules of which two sources say different scales, and doubts."""
    yield from (f"{claim.doubt}. Say which alpha is right with alpha=" for claim in claims if claim.doubt)
    for index, claim in enumerate(claims):
        for other in claims[index + 1 :]:
            tolerance = max(claim.tolerance, other.tolerance)
            odd = [
                f"{name} ({claim.scales[name]:g} and {other.scales[name]:g})"
                for name in claim.scales.keys() & other.scales.keys()
                if not math.isclose(claim.scales[name], other.scales[name], rel_tol=tolerance)
            ]
            if odd:
                what = (
                    f"{claim.source} and {other.source} disagree about the scale of {len(odd)} pairs: {first_few(sorted(odd))}"
                )
                yield f"{what}. Say which alpha is right with alpha="


def _tensors(stored: Stored) -> Iterator[Claim]:
    scales = {name: alpha / dim for name, alpha in stored.alphas.items() if (dim := stored.dims[name]) is not None}
    dtypes = {stored.source.dtypes[stored.modules[name]["alpha"]] for name in scales}
    if scales:
        yield Claim("the file's alpha tensors", scales, tolerance=max(map(_rounding, dtypes)))
    if stored.defined:
        yield Claim("LyCORIS: a LoKr of two whole factors has scale 1", stored.defined)


def _rounding(dtype: torch.dtype) -> float:
    """By how much a number changes at most when it is stored, relative to itself."""
    return max(RELATIVE_TOLERANCE, torch.finfo(dtype).eps / 2) if dtype.is_floating_point else RELATIVE_TOLERANCE


def _peft_config(stored: Stored) -> Iterator[Claim]:
    if stored.source.config is not None:
        yield from _of_specs(f"{CONFIG} beside it", stored.source.config, stored.dims)


def _header(stored: Stored) -> Iterator[Claim]:
    yield from _of_entry("lora_adapter_metadata", stored)


def _finetrainers(stored: Stored) -> Iterator[Claim]:
    yield from _of_entry("lora_config", stored)


def _of_entry(name: str, stored: Stored) -> Iterator[Claim]:
    if (text := stored.source.metadata.get(name)) is not None:
        try:
            fields = parse_json(text, f"the header entry {name}")
        except FileFormatError as error:
            raise AdapterError(str(error)) from error
        yield from _of_specs(f"the file's {name}", fields, stored.dims)


def _of_specs(name: str, fields: Mapping[str, Any], dims: Dims) -> Iterator[Claim]:
    specs, problems = specs_of(fields, dims)
    if problems:
        raise AdapterError("; ".join(f"{name}: {problem}" for problem in problems))
    if specs:
        told = {f"{role}.{path}": (spec, path) for role, (spec, paths) in specs.items() for path in paths}
        yield Claim(
            name,
            scales={module: spec.scale_of(path) for module, (spec, path) in told.items()},
            specs={role: spec for role, (spec, _) in specs.items()},
            ranks={module: spec.rank_of(path) for module, (spec, path) in told.items() if dims[module] is not None},
            doras=frozenset(module for module in told if _is_true(fields, module.partition(".")[0], "use_dora")),
        )


def _is_true(fields: Mapping[str, Any], role: str, name: str) -> bool:
    return fields.get(f"{role}.{name}", fields.get(name)) is True


def _kohya(stored: Stored) -> Iterator[Claim]:
    """``ss_network_dim`` and ``ss_network_alpha``, if they are numbers (after a resize both are a word).

    ``ss_network_args`` may give some modules dims and alphas of their own (``conv_dim``, ``block_alphas``), and not in a way
    that tells which. Source: sd-scripts, train_network.py and networks/lora.py.
    """
    alpha, dim = (_number(stored.source.metadata.get(key)) for key in ("ss_network_alpha", "ss_network_dim"))
    args = _network_args(stored.source.metadata.get("ss_network_args"))
    ranks = {name: rank for name, rank in stored.dims.items() if rank is not None}
    common = {name: rank for name, rank in ranks.items() if rank not in args.dims}
    if dim:
        yield Claim("the file's ss_network_dim", ranks=dict.fromkeys(common, dim))
    if not alpha:
        return
    is_of_all = not args.has_alphas and common == ranks and (dim or len(set(ranks.values())) == 1)
    silent = [name for name in ranks if name not in stored.alphas]
    if silent and not is_of_all:
        what = (
            f"{len(silent)} pairs have no alpha tensor, and the file's ss_network_alpha ({alpha:g}) is not that of every rank"
        )
        yield Claim("the file's ss_network_alpha", doubt=f"{what}: {first_few([f'{n} (rank {ranks[n]})' for n in silent])}")
    elif not args.has_alphas:
        yield Claim("the file's ss_network_alpha", {name: alpha / rank for name, rank in common.items()})


@dataclass(frozen=True)
class _NetworkArgs:
    """What ``ss_network_args`` say of modules that are not like the others."""

    dims: frozenset[int] = frozenset()
    has_alphas: bool = False


def _network_args(text: str | None) -> _NetworkArgs:
    try:
        args = json.loads(text or "null")
    except (ValueError, RecursionError):
        return _NetworkArgs()
    if not isinstance(args, dict):
        return _NetworkArgs()
    told = [str(value) for key, value in args.items() if "dim" in key and isinstance(value, str | int | float)]
    dims = frozenset(int(number) for value in told for number in re.findall(r"\b\d{1,6}\b", value))
    return _NetworkArgs(dims, any("alpha" in key for key in args))


def _bare(stored: Stored) -> Iterator[Claim]:
    for key in _BARE_ALPHAS:
        if alpha := _number(stored.source.metadata.get(key)):
            yield Claim(f"the header's {key}", {name: alpha / dim for name, dim in stored.dims.items() if dim})


def _sat(stored: Stored) -> Iterator[Claim]:
    if stored.source.sat_lora is None:
        return
    alpha, rank = stored.source.sat_lora
    if odd := sorted({dim for dim in stored.dims.values() if dim != rank}, key=str):
        raise AdapterError(f"the YAML says r {rank}, the tensors have {', '.join(map(str, odd))}")
    yield Claim(f"the YAML's lora_config: alpha {alpha:g}, r {rank}", dict.fromkeys(stored.dims, alpha / rank))


def _cloneofsimo(stored: Stored) -> Iterator[Claim]:
    """``unet:3:rank`` beside the tensor ``unet:3:down``: no alpha, but a rank to be checked."""
    keys = {name: slots["A"] for name, slots in stored.modules.items() if slots.get("A", "").endswith(":down")}
    texts = {name: stored.source.metadata.get(f"{key.removesuffix('down')}rank") for name, key in keys.items()}
    if odd := [f"{name} ({shown(text)})" for name, text in texts.items() if text is not None and _number(text) is None]:
        raise AdapterError(f"the header's ranks of {len(odd)} pairs are no numbers: {first_few(odd)}")
    if ranks := {name: rank for name, text in texts.items() if (rank := _number(text)) is not None}:
        yield Claim("the header's :rank entries", ranks=ranks)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
