"""Adapters as branches: what hangs in the model while they act unfused."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reelora.adapters import Pair
from reelora.errors import MismatchError, first_few

from .acting import Acting
from .kernel import dense_update
from .processors import Processors
from .sites import Site
from .stack import Stack, build_stack
from .stacked import Stacked, stand_in_for

__all__ = ["Branches"]


class Branches:
    """One stand-in for every module that an adapter acts on; a module that none acts on is the original object.

    Stacks that were used lately are kept, up to ``cache_bytes``, so that going back to them costs no copy.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], sites: Mapping[str, Site], *, rank_bucket: int, cache_bytes: int
    ) -> None:
        self._sites = sites
        self._rank_bucket, self._cache_bytes = rank_bucket, cache_bytes
        self._stands: dict[str, Stacked] = {}
        self._hung: frozenset[str] = frozenset()
        self._cache: OrderedDict[tuple[tuple[int, tuple[str, ...]], ...], Stack] = OrderedDict()
        self._processors = Processors(models)

    @property
    def hung(self) -> frozenset[str]:
        """The sites where a stand-in hangs now."""
        return self._hung

    @property
    def cached_bytes(self) -> int:
        """Bytes of all stacks that are kept."""
        return sum(stack.size_bytes for stack in self._cache.values())

    def apply(self, samples: Sequence[Acting]) -> None:
        """Let one set act on everything, or one set on each sample of a batch; `clear` if nothing acts.

        What can fail is done before the first edit. Raises MismatchError if something else hangs at one of the places now.
        """
        stack = self._stack(samples)
        dense = self._dense(samples)
        names = frozenset([*(stack.parts if stack else ()), *dense])
        self._check_places(names | self._hung)
        gains = self._gains(stack, samples) if stack else {}
        for name in self._hung - names:
            self._take_down(name)
        for name in names:
            part = stack.parts.get(name) if stack else None
            a, b, shared = (part.a, part.b, part.shared_a) if part else (None, None, None)
            self._stand(name).hold(a, b, gains.get(name), dense.get(name), shared)
        for name in names - self._hung:
            self._stands[name].adopt()
            self._sites[name].put(self._stands[name])
        if names != self._hung:
            self._processors.serve([self._sites[name] for name in names])
        self._hung = names

    def forget(self, pairs: Mapping[str, Pair]) -> None:
        """Drop every stack that holds the pairs of this adapter."""
        for key in [key for key in self._cache if any(held == id(pairs) for held, _ in key)]:
            del self._cache[key]

    def _stack(self, samples: Sequence[Acting]) -> Stack | None:
        """The stack of all pairs of the samples, made or remembered; None if there is none. A DoRA is no pair to stack."""
        members = _members(samples)
        if not members:
            return None
        key = tuple((id(pairs), tuple(sites)) for pairs, sites in members.values())
        stack = self._cache.get(key)
        if stack is None or not stack.is_placed_for(self._sites):
            chosen = {name: {site: pairs[site] for site in sites} for name, (pairs, sites) in members.items()}
            stack = build_stack(chosen, self._sites, rank_bucket=self._rank_bucket)
        self._cache[key] = stack
        self._cache.move_to_end(key)
        while len(self._cache) > 1 and self.cached_bytes > self._cache_bytes:
            self._cache.popitem(last=False)
        return stack

    def _gains(self, stack: Stack, samples: Sequence[Acting]) -> dict[str, Tensor]:
        members = _members(samples)
        rows = [stack.gains(_strengths(members, acting)) for acting in samples]
        return stack.views(rows[0] if len(rows) == 1 else torch.stack(rows))

    def _dense(self, samples: Sequence[Acting]) -> dict[str, Tensor]:
        """The updates of all DoRA pairs, which depend on the weights, so that they are no pairs to stack."""
        found: dict[str, Tensor] = {}
        for use in samples[0] if len(samples) == 1 else ():
            for name, strength in use.strengths.items():
                pair = use.pairs[name]
                if pair.magnitude:
                    site = self._sites[name]
                    update = dense_update(site.weight, pair, strength)
                    found[name] = found[name] + update if name in found else update
        return {name: update.to(self._sites[name].dtype or update.dtype) for name, update in found.items()}

    def _stand(self, name: str) -> Stacked:
        if name not in self._stands:
            self._stands[name] = stand_in_for(self._sites[name].module)
        return self._stands[name]

    def _take_down(self, name: str) -> None:
        stand = self._stands[name]
        self._sites[name].put(stand.release())
        stand.hold(None, None, None, None, None)

    def _check_places(self, names: frozenset[str]) -> None:
        """Raise unless at every place hangs the original or our stand-in."""
        odd = [name for name in names if not self._is_ours(name)]
        if odd:
            raise MismatchError(
                f"{len(odd)} modules were replaced since this Rack was made ({first_few(sorted(odd))}): make a new Rack."
            )

    def _is_ours(self, name: str) -> bool:
        current = self._sites[name].current
        return current is self._sites[name].module or current is self._stands.get(name)


def _members(samples: Sequence[Acting]) -> dict[str, tuple[Mapping[str, Pair], list[str]]]:
    """By adapter: its pairs, and the sites where one that can be stacked acts on any of the samples."""
    members: dict[str, tuple[Mapping[str, Pair], dict[str, None]]] = {}
    for acting in samples:
        for use in acting:
            sites = members.setdefault(use.name, (use.pairs, {}))[1]
            sites.update(dict.fromkeys(name for name in use.strengths if not use.pairs[name].magnitude))
    return {name: (pairs, list(sites)) for name, (pairs, sites) in sorted(members.items()) if sites}


def _strengths(members: Mapping[str, tuple[Mapping[str, Pair], list[str]]], acting: Acting) -> list[float]:
    """The strength of every member at every one of its sites, 0 where it does not act on this sample."""
    held = {use.name: use.strengths for use in acting}
    return [held.get(name, {}).get(site, 0.0) for name, (_, sites) in members.items() for site in sites]
