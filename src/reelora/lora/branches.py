"""Adapters as branches: what hangs in the model while they act unfused."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from reelora.adapters import Pair
from reelora.errors import ConfigError, MismatchError, first_few

from .acting import Acting
from .cache import Key, StackCache
from .kernel import dense_update
from .offload import offload_hooks
from .processors import Processors
from .sites import Site
from .stack import Stack, build_stack
from .stacked import NOTHING, Held, Stacked, stand_in_for

__all__ = ["Branches"]


class Branches:
    """One stand-in for every module that an adapter acts on; a module that none acts on is the original object.

    Stacks that were used lately are kept, within the budget of `cache`, so that going back to them costs no copy.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], sites: Mapping[str, Site], *, rank_bucket: int, cache_bytes: int
    ) -> None:
        self._sites = sites
        self._rank_bucket = rank_bucket
        self.cache = StackCache(cache_bytes)
        self._stands: dict[str, Stacked] = {}
        self._hung: frozenset[str] = frozenset()
        self._processors = Processors(models)

    @property
    def hung(self) -> frozenset[str]:
        """The sites where a stand-in hangs now."""
        return self._hung

    def apply(self, samples: Sequence[Acting]) -> None:
        """Let one set act on everything, or one set on each sample of a batch; `clear` if nothing acts.

        What can fail is done before the first edit. Raises MismatchError if something else hangs at one of the places now.
        """
        self._check_places(self._hung.union(*(use.strengths for acting in samples for use in acting)))
        held = self._held(samples)
        names = frozenset(held)
        for name in self._hung - names:
            self._take_down(name)
        for name, tensors in held.items():
            self._stand(name).hold(tensors)
        for name in names - self._hung:
            self._stands[name].adopt()
            self._sites[name].put(self._stands[name])
        if names != self._hung:
            self._processors.serve([self._sites[name] for name in names])
        self._hung = names

    def prefetch(self, acting: Acting) -> None:
        """Build and keep the stack of a set that does not act yet; ConfigError if the budget has no room for it."""
        members = _members([acting])
        if not members:
            return
        key, stack = _key(members), self._stack(members)
        if missing := self.cache.bytes_missing_for(key, stack):
            raise ConfigError(
                f"{', '.join(members)}: cache_bytes is {missing:,} bytes too small to keep what is prefetched beside what acts "
                "and what is pinned: raise it, or unpin something."
            )
        self.cache.put(key, stack)

    def _stack(self, members: "_Members") -> Stack:
        """The stack of all pairs of the members, made or remembered."""
        stack = self.cache.find(_key(members))
        if stack is not None and stack.is_placed_for(self._sites):
            return stack
        chosen = {name: {site: pairs[site] for site in sites} for name, (pairs, sites) in members.items()}
        return build_stack(chosen, self._sites, rank_bucket=self._rank_bucket)

    def _held(self, samples: Sequence[Acting]) -> Mapping[str, Held]:
        """What stands in for every site that anything acts on."""
        members, dense = _members(samples), self._dense(samples)
        self.cache.act(_key(members))
        held = self._stacked(members, samples) if members else {}
        if not dense:
            return held
        return {**held, **{name: {**held.get(name, NOTHING), "dense": update} for name, update in dense.items()}}

    def _stacked(self, members: "_Members", samples: Sequence[Acting]) -> Mapping[str, Held]:
        stack = self._stack(members)
        self.cache.put(_key(members), stack)
        strengths = [_strengths(members, acting) for acting in samples]
        if len(strengths) == 1:
            stack.set_gains(strengths[0])
            return stack.held
        gains = stack.gains_of_samples(strengths)
        return {name: {**held, "gains": gains[name]} for name, held in stack.held.items()}

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
        stand.hold(NOTHING)

    def _check_places(self, names: frozenset[str]) -> None:
        """Raise unless at every place hangs the original or our stand-in, and nothing but us has touched that."""
        odd = [name for name in names if self._sites[name].current not in (self._stands.get(name), self._sites[name].module)]
        if odd:
            raise MismatchError(
                f"{len(odd)} modules were replaced since this Rack was made ({first_few(sorted(odd))}): make a new Rack."
            )
        if hooked := [name for name in names & self._hung if offload_hooks(self._stands[name])]:
            raise MismatchError(
                f"Offloading or casting was switched on while adapters acted as branches, and hangs on {len(hooked)} of them "
                f"({first_few(sorted(hooked))}). Switch it off, let no adapter act (activate({{}})), and switch it on again."
            )


_Members = Mapping[str, tuple[Mapping[str, Pair], Sequence[str]]]
"""By adapter: its pairs, and the sites where one that can be stacked acts on any sample. A DoRA is no pair to stack."""


def _key(members: _Members) -> Key:
    return tuple((name, tuple(sites)) for name, (_, sites) in members.items())


def _members(samples: Sequence[Acting]) -> _Members:
    members: dict[str, tuple[Mapping[str, Pair], dict[str, None]]] = {}
    for acting in samples:
        for use in acting:
            sites = members.setdefault(use.name, (use.pairs, {}))[1]
            sites.update(dict.fromkeys(name for name in use.strengths if not use.pairs[name].magnitude))
    return {name: (pairs, list(sites)) for name, (pairs, sites) in sorted(members.items()) if sites}


def _strengths(members: _Members, acting: Acting) -> list[float]:
    """The strength of every member at every one of its sites, 0 where it does not act on this sample."""
    held = {use.name: use.strengths for use in acting}
    return [held.get(name, {}).get(site, 0.0) for name, (_, sites) in members.items() for site in sites]
