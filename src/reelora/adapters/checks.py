"""Everything that can be wrong with the parts, ranks and strengths of one file, all at once."""

import math
from collections.abc import Iterator, Mapping

import torch

from reelora.errors import first_few
from reelora.layouts import Layout, Slot

from .claims import Claim, Dims, Modules, Stored
from .forms import Form, Shapes, form_of, magnitude_problem
from .producers import PRODUCERS
from .source import Source

__all__ = ["NUMBERS", "alphas_of", "module_problems", "producer_problems", "stored_of", "told_problems"]

_NORMS: frozenset[Slot] = frozenset({"magnitude", "dora_scale"})
NUMBERS: frozenset[Slot] = frozenset({"alpha", "rank"})


def module_problems(modules: Modules, source: Source) -> tuple[list[str], Modules]:
    """What is wrong with the parts of every module, by kind; and the modules with which nothing is."""
    kinds: dict[str, list[str]] = {}
    sound: dict[str, Mapping[Slot, str]] = {}
    for name, slots in modules.items():
        found = list(_problems_of(slots, source))
        for kind, problem in found:
            kinds.setdefault(kind, []).append(f"{name} {problem}")
        if not found:
            sound[name] = slots
    problems = [f"{len(names)} {kind}: {first_few(names)}" for kind, names in kinds.items()]
    if not modules:
        problems.append("it has no pair at all, that is no two tensors that are A and B of one module in any known layout")
    return problems, sound


def _problems_of(slots: Mapping[Slot, str], source: Source) -> Iterator[tuple[str, str]]:
    shapes = _shapes(slots, source)
    if (form := form_of(slots)) is None:
        yield "modules hold parts that do not belong together", f"({', '.join(sorted(slots))})"
    elif problem := form.problem(shapes):
        yield ("pairs lack their other half" if problem.startswith("lacks") else "pairs do not fit together"), problem
    elif not _NORMS.isdisjoint(slots):
        yield from _dora_problems(form, shapes)
    for slot, key in slots.items():
        if slot in NUMBERS and math.prod(shapes[slot]) != 1:
            yield f"{slot} tensors are no single number", f"{shapes[slot]}"
        if not _is_numeric(source.dtypes[key], may_be_whole=slot in NUMBERS):
            yield "modules hold values that no adapter can be made of", f"({slot} is {source.dtypes[key]})"


def _dora_problems(form: Form, shapes: Shapes) -> Iterator[tuple[str, str]]:
    if form.name != "LoRA":
        yield "modules are a DoRA and no plain LoRA, which no tool of today can hold", form.name
    elif problem := magnitude_problem(shapes, (shapes["B"][0], math.prod(shapes["A"][1:]))):
        yield "DoRA norms do not fit", problem


def _is_numeric(dtype: torch.dtype, *, may_be_whole: bool) -> bool:
    """Floating point; for the rank and alpha also a whole number. (Quantised factors lack the scale of their quantiser.)"""
    is_whole = not dtype.is_complex and dtype != torch.bool
    return dtype.is_floating_point or (may_be_whole and is_whole)


def alphas_of(modules: Modules, source: Source) -> tuple[dict[str, float], list[str]]:
    """The stored alphas (zero is none, as kohya reads it), and ranks or alphas that cannot be."""
    alphas, odd = {}, []
    for name, slots in modules.items():
        values = {slot: float(source.tensors[slots[slot]].reshape(())) for slot in NUMBERS if slot in slots}
        if not all(math.isfinite(value) and value >= 0 for value in values.values()):
            odd.append(f"{name} {values}")
        elif "rank" in values and values["rank"] != source.shapes[slots["A"]][0]:
            odd.append(f"{name} (rank {values['rank']:g} by its tensor, {source.shapes[slots['A']][0]} by its shape)")
        elif values.get("alpha"):
            alphas[name] = values["alpha"]
    return alphas, [f"{len(odd)} pairs store an alpha or rank that cannot be: {first_few(odd)}"] if odd else []


def told_problems(claims: list[Claim], stored: Stored) -> Iterator[str]:
    """Settings that the tensors contradict: other ranks, or a DoRA without its norms."""
    for claim in claims:
        if lost := [name for name in claim.doras if _NORMS.isdisjoint(stored.modules[name])]:
            what = f"{len(lost)} of {len(stored.modules)} modules have no norms of a DoRA: {first_few(sorted(lost))}"
            yield f"{claim.source} says use_dora, but {what}. The file has lost them"
        odd = [f"{name} ({stored.dims[name]}, not {rank:g})" for name, rank in claim.ranks.items() if stored.dims[name] != rank]
        if odd:
            yield f"{len(odd)} pairs have another rank than {claim.source} says: {first_few(odd)}"


def producer_problems(producer: str, claims: list[Claim], dims: Dims) -> Iterator[str]:
    """A profile that contradicts the file: another rank than it always uses, or another scale than the file says."""
    profile = PRODUCERS[producer]
    if profile.rank and (odd := sorted({str(dim) for dim in dims.values() if dim != profile.rank})):
        yield f"{producer} always uses rank {profile.rank}, the file has {', '.join(odd)}; give alpha= instead"
    scales = {name: scale for claim in claims for name, scale in claim.scales.items()}
    if odd := [f"{name} ({scale:g})" for name, scale in scales.items() if scale != profile.alpha / (dims[name] or 1)]:
        yield f"{len(odd)} pairs have another scale by the file than by {producer}: {first_few(odd)}; give alpha= to decide"


def stored_of(modules: Modules, source: Source, alphas: Mapping[str, float], layout: Layout | None) -> Stored:
    """What the tensors of sound modules say."""
    forms = {name: form for name, slots in modules.items() if (form := form_of(slots)) is not None}
    dims = {name: form.dim(_shapes(modules[name], source)) for name, form in forms.items()}
    scale = layout.scale_of_whole_lokr if layout else None
    return Stored(source=source, modules=modules, forms=forms, dims=dims, alphas=alphas, scale_of_whole_lokr=scale)


def _shapes(slots: Mapping[Slot, str], source: Source) -> dict[Slot, tuple[int, ...]]:
    return {slot: source.shapes[key] for slot, key in slots.items()}
