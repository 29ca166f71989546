"""Whether an adapter fits a model, found out before anything is touched."""

import re
from collections.abc import Iterable, Iterator, Mapping

from reelora.adapters import Adapter, Pair, by_role
from reelora.errors import MismatchError, first_few

from .sites import Site

__all__ = ["check_fit"]


def check_fit(adapter: Adapter, sites: Mapping[str, Site], classes: Mapping[str, str]) -> None:
    """Raise MismatchError with everything that keeps an adapter from these sites; ``classes`` names the model of each role."""
    problems = [line for role, pairs in by_role(adapter.pairs).items() for line in _problems(role, pairs, sites, classes)]
    if problems:
        raise MismatchError("\n".join([*problems, "It was made for another model, or for another size of this one."]))


def _problems(role: str, pairs: Mapping[str, Pair], sites: Mapping[str, Site], classes: Mapping[str, str]) -> Iterator[str]:
    if role not in classes:
        held = ", ".join(classes)
        yield f"{len(pairs)} adapter paths are for the {role}, and this Rack holds {held}: make it of the pipeline."
        return
    named = {f"{role}.{path}": pair for path, pair in pairs.items()}
    lost = [name for name in named if name not in sites]
    if lost:
        named_there = f"{len(lost)} of {len(pairs)} adapter paths"
        yield f"{named_there} are no Linear or convolution of {classes[role]}, first {first_few(lost)}"
        yield from _depth_hints(named, sites)
    odd = {
        name: f"{name} {problem}" for name, pair in named.items() if name in sites and (problem := _misfit(pair, sites[name]))
    }
    if odd:
        yield f"{len(odd)} of {len(pairs)} pairs do not fit their module: {first_few(list(odd.values()))}"


def _misfit(pair: Pair, site: Site) -> str:
    if pair.shape != site.shape:
        return f"is {pair.shape}, the model's is {site.shape}"
    if set(pair.kernel) - {1} and pair.kernel != site.kernel:
        return f"has kernel {pair.kernel}, the model's has {site.kernel}"
    groups = getattr(site.module, "groups", 1)
    return f"is for a convolution in {groups} groups, which no pair can be beside" if groups != 1 else ""


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
