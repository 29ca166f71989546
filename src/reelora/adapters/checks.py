"""Everything that can be wrong with the parts, ranks and strengths of one file, all at once."""

import math
from collections.abc import Iterator, Mapping

from reelora.errors import first_few
from reelora.layouts import Slot

from .adapter import by_role
from .claims import Claim, Dims
from .forms import Form, form_of, magnitude_problem
from .producers import PRODUCERS
from .source import Source

__all__ = ["Modules", "alphas_of", "dims_of", "module_problems", "producer_problems", "told_problems"]

Modules = Mapping[str, Mapping[Slot, str]]
"""Our module name, slot, and the tensor that has it."""


def module_problems(modules: Modules, source: Source) -> tuple[list[str], Modules]:
    """What is wrong with the parts of every module, by kind; and the modules with which nothing is."""
    kinds: dict[str, list[str]] = {}
    odd = {name: found for name, slots in modules.items() if (found := list(_problems_of(slots, source)))}
    for name, found in odd.items():
        for kind, problem in found:
            kinds.setdefault(kind, []).append(f"{name} {problem}")
    problems = [f"{len(names)} {kind}: {first_few(names)}" for kind, names in kinds.items()]
    if not modules:
        problems.append("it has no pair at all, that is no two tensors that are A and B of one module in any known layout")
    return problems, {name: slots for name, slots in modules.items() if name not in odd}


def _problems_of(slots: Mapping[Slot, str], source: Source) -> Iterator[tuple[str, str]]:
    shapes = _shapes(slots, source)
    if (form := form_of(slots)) is None:
        yield "modules hold parts that do not belong together", f"({', '.join(sorted(slots))})"
    elif problem := form.problem(shapes):
        yield ("pairs lack their other half" if problem.startswith("lacks") else "pairs do not fit together"), problem
    elif form.name == "LoRA":
        a, b = shapes["A"], shapes["B"]
        if problem := magnitude_problem(shapes, (b[0], math.prod(a[1:]))):
            yield "DoRA norms do not fit", problem
    elif {"magnitude", "dora_scale"} & set(shapes):
        yield "modules are a DoRA and no plain LoRA, which no tool of today can hold", form.name
    for slot in ("alpha", "rank"):
        if slot in shapes and math.prod(shapes[slot]) != 1:
            yield f"{slot} tensors are no single number", f"{shapes[slot]}"


def alphas_of(modules: Modules, source: Source) -> tuple[dict[str, float], list[str]]:
    """The stored alphas (zero is none, as kohya reads it), and ranks or alphas that cannot be."""
    alphas, odd = {}, []
    for name, slots in modules.items():
        values = {slot: float(source.tensors[slots[slot]].reshape(())) for slot in ("alpha", "rank") if slot in slots}
        if not all(math.isfinite(value) and value >= 0 for value in values.values()):
            odd.append(f"{name} {values}")
        elif "rank" in values and values["rank"] != source.shapes[slots["A"]][0]:
            odd.append(f"{name} (rank {values['rank']:g} by its tensor, {source.shapes[slots['A']][0]} by its shape)")
        elif values.get("alpha"):
            alphas[name] = values["alpha"]
    return alphas, [f"{len(odd)} pairs store an alpha or rank that cannot be: {first_few(odd)}"] if odd else []


def told_problems(claims: list[Claim], modules: Modules, source: Source) -> Iterator[str]:
    """Settings that the tensors contradict: other ranks, or a DoRA without its norms."""
    for claim in claims:
        if claim.is_dora and not any({"magnitude", "dora_scale"} & set(slots) for slots in modules.values()):
            yield f"{claim.source} says use_dora, but no module has the norms of a DoRA: the file has lost them"
    ranks = {name: source.shapes[slots["A"]][0] for name, slots in modules.items() if "A" in slots}
    for claim in claims:
        told = {
            f"{role}.{path}": (role, path) for role, paths in by_role(ranks).items() if role in claim.specs for path in paths
        }
        wanted = {name: claim.specs[role].rank_of(path) for name, (role, path) in told.items()}
        if odd := [f"{name} ({ranks[name]}, not {rank})" for name, rank in wanted.items() if ranks[name] != rank]:
            yield f"{len(odd)} pairs have another rank than {claim.source} says: {first_few(odd)}"


def producer_problems(producer: str, claims: list[Claim], dims: Dims) -> Iterator[str]:
    """A profile that contradicts the file: another rank than it always uses, or another scale than the file says."""
    profile = PRODUCERS[producer]
    if profile.rank and (odd := sorted({str(dim) for dim in dims.values() if dim != profile.rank})):
        yield f"{producer} always uses rank {profile.rank}, the file has {', '.join(odd)}; give alpha= instead"
    scales = {name: scale for claim in claims for name, scale in claim.scales.items()}
    if odd := [f"{name} ({scale:g})" for name, scale in scales.items() if scale != profile.alpha / (dims[name] or 1)]:
        yield f"{len(odd)} pairs have another scale by the file than by {producer}: {first_few(odd)}; give alpha= to decide"


def _form(slots: Mapping[Slot, str]) -> Form:
    form = form_of(slots)
    assert form is not None, "module_problems comes first"
    return form


def dims_of(modules: Modules, source: Source) -> dict[str, int | None]:
    """What alpha is divided by in each module."""
    return {name: _form(slots).dim(_shapes(slots, source)) for name, slots in modules.items()}


def _shapes(slots: Mapping[Slot, str], source: Source) -> dict[Slot, tuple[int, ...]]:
    return {slot: source.shapes[key] for slot, key in slots.items()}
