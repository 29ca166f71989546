"""Many adapters over one base: registered by name, activated in any mix, fused and restored."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from reelora.adapters import Adapter, read_adapter, split_role
from reelora.errors import ConfigError, MismatchError, nearest

from .acting import Acting, Use, only, uses_by_site
from .base import base_fingerprints, base_notes
from .branches import Branches
from .fit import check_fit
from .fused import FusedWeights, rounding_loss
from .home import Home, reader_of
from .model import models_of
from .processors import attentions_of, bypasses, check_projections
from .rounding import check_rounding, noise_of
from .sites import sites_of
from .state import AdapterState, RackState
from .strengths import Strength, by_module

__all__ = ["Rack"]

Strengths = Mapping[str, Strength]
Sample = Strengths | None

_LOOKED_AT = 8
"""Modules whose rounding is looked at after every fuse."""
_MOSTLY = 0.5
"""The share of an update whose loss is warned about."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """One registered adapter."""

    adapter: Adapter
    source: str
    notes: tuple[str, ...]
    names: tuple[str, ...]
    """Of its modules."""


@dataclass(frozen=True)
class _Wish:
    """What was asked for: the whole state of a rack, but for what is registered."""

    strengths: tuple[Mapping[str, Strength], ...] = ({},)
    """As given, one for the whole batch, or one for each sample."""
    is_fused: bool = False


class Rack:
    """Adapters over a pipeline or a model.

    The state decides the result, never the path that led to it: whatever was called before, in whatever order, the same
    adapters at the same strengths give the same bits, in both modes. Where no adapter acts, the original module object runs on
    its original weight. Every call checks first and edits then; when it fails, the model is as it was.

    `fuse` and `restore` switch between two ways to act. As branches, active adapters run beside the modules as one stacked pair
    each; a change costs next to nothing, every forward a little. Fused, they are added into the weights: every change costs one
    product per module, a forward nothing. ``home`` says where the pristine weights wait then: ``kept`` on their device, on the
    ``host``, or in the ``file`` from which they are read again: ``base``, a folder or safetensors file with the weights of the
    (one) model. By itself (``auto``) the first of these that has room is chosen at the first fuse, and kept to.

    bfloat16 may round most of a small update away: modules that would lose more than the share ``keep_branches_over`` of it
    keep branches when the rest is fused; fusing warns where more than half is lost. With ``rounding="stochastic"`` fused
    weights are rounded up or down by chance, so that small updates stay on average; the chance is a function of ``seed``.

    ``rank_bucket`` fills stacked ranks up to a multiple of itself, so that compiled code sees one shape for adapters of
    different ranks. Stacks that were active lately are kept, up to ``cache_bytes``: the one that was used longest ago goes
    first, those of adapters that are pinned (`pin`) never. `prefetch` stacks what will act soon.
    """

    def __init__(
        self,
        model: nn.Module | Any,
        *,
        home: Home = "auto",
        base: str | Path | None = None,
        keep_branches_over: float = math.inf,
        rounding: str = "nearest",
        seed: int = 0,
        rank_bucket: int = 1,
        cache_bytes: int = 2 * 1024**3,
    ) -> None:
        self._models = models_of(model)
        self._sites = sites_of(self._models)
        self._attentions = attentions_of(self._sites.values())
        self._branches = Branches(self._models, self._sites, rank_bucket=rank_bucket, cache_bytes=cache_bytes)
        check_rounding(rounding)
        self._weights = FusedWeights(self._sites, home=home, read=reader_of(home, base), noise=noise_of(rounding, seed))
        self._keeps_mean = rounding == "stochastic"
        self._keep_branches_over = keep_branches_over
        self._stuck: Mapping[str, str] = {}
        """The modules that keep a branch although the rest is fused, and why."""
        self._entries: dict[str, _Entry] = {}
        self._wish = _Wish()
        self._finite: set[str] = set()
        """Names of adapters whose values were found finite."""
        self._bases: dict[str, Mapping[str, str]] = {}

    # ---- what is registered

    def load(
        self,
        name: str,
        adapter: Adapter | str | Path,
        *,
        alpha: float | None = None,
        producer: str | None = None,
        strict_base: bool = False,
    ) -> None:
        """Register an adapter under a name. Nothing acts yet, and of a file only the header is read.

        ``alpha`` and ``producer`` are those of `reelora.read_adapter`. Raises ConfigError for a name that is taken, what
        reading raises, MismatchError unless every module is there in the right shape and the base is of the shape it was
        trained on (with ``strict_base``: of its very values), and UnknownScaleError if nothing says how strong it was trained.
        """
        if name in self._entries:
            raise ConfigError(
                f"{name!r} is registered already ({self._entries[name].source}): unload it first, or take another name."
            )
        if isinstance(adapter, Adapter) and not (alpha is None and producer is None):
            raise ConfigError(f"{name}: alpha and producer are for reading a file; this adapter is read already.")
        source = "memory" if isinstance(adapter, Adapter) else str(adapter)
        held = adapter if isinstance(adapter, Adapter) else read_adapter(adapter, alpha=alpha, producer=producer)
        check_fit(held, self._sites, {role: type(model).__name__ for role, model in self._models.items()})
        held.check_scale()
        notes = base_notes(held, lambda: self._fingerprints(held.roles[0]), name=name, strict_base=strict_base)
        self._entries[name] = _Entry(held, source, tuple(notes), tuple(held.pairs))

    def unload(self, name: str) -> None:
        """Forget an adapter; one that acts is deactivated first, in either mode."""
        self._entry(name)
        kept = tuple({key: value for key, value in sample.items() if key != name} for sample in self._wish.strengths)
        self._become(_Wish(kept, self._wish.is_fused))
        self._branches.cache.forget(name)
        del self._entries[name]
        self._finite.discard(name)
        if not self._entries:
            self._weights.release_buffers()

    def pin(self, name: str) -> None:
        """Keep the stacks of this adapter, and of it with other pinned ones, whatever ``cache_bytes`` says."""
        self._entry(name)
        self._branches.cache.pin(name)

    def unpin(self, name: str) -> None:
        """Let its stacks go again when others need the room."""
        self._entry(name)
        self._branches.cache.unpin(name)

    def prefetch(self, strengths: Strengths) -> None:
        """Do now what `activate` of these adapters would have to do first: read their values, check and stack them.

        Nothing acts yet; any other strengths will find the stack too. For an accelerator it goes there in one copy. While fused
        there is nothing to stack. Raises what `activate` raises, and ConfigError if ``cache_bytes`` leaves no room.
        """
        acting = self._acting(strengths)
        self._check([acting], is_fused=self._wish.is_fused)
        if not self._wish.is_fused:
            self._branches.prefetch(acting)

    # ---- what acts

    def activate(self, strengths: Strengths) -> None:
        """Let exactly these adapters act, at these strengths (1.0: as trained, 0: off); ``{}`` is none.

        A strength may be a rule by path or glob, see `Strength`. Raises ConfigError for a name that is not registered and an
        impossible strength, AdapterError for NaN or infinite values, found when an adapter first acts.
        """
        self._become(_Wish((dict(strengths),), self._wish.is_fused))
        if self._wish.is_fused:
            self._warn_of_rounding()

    def activate_per_sample(self, samples: Sequence[Sample]) -> None:
        """Let other adapters act on each sample of a batch; None or ``{}`` is the base.

        A forward then needs a batch of that many samples, or a multiple of it in the same order, as guidance makes. Raises
        ConfigError while fused, since weights are the same for all samples, and for a DoRA; else as `activate`.
        """
        if not samples:
            raise ConfigError("Adapters for no samples at all: give one entry for each sample of the batch.")
        self._become(_Wish(tuple(dict(sample or {}) for sample in samples), self._wish.is_fused))

    @contextmanager
    def using(self, strengths: Strengths) -> Iterator[None]:
        """`activate` for the length of a block; afterwards acts what acted before."""
        before = self._wish
        self.activate(strengths)
        try:
            yield
        finally:
            known = tuple({key: value for key, value in sample.items() if key in self._entries} for sample in before.strengths)
            self._become(_Wish(known, before.is_fused))

    # ---- how it acts

    def fuse(self) -> None:
        """Add what acts into the weights, from now on: one product and one rounding per module, from the pristine weight.

        Modules whose weight cannot be written exactly (8 bits and fewer, offloaded one by one) keep branches; `state` says
        which.
        """
        self._become(_Wish(self._wish.strengths, is_fused=True))
        self._warn_of_rounding()

    def restore(self) -> None:
        """Bring the pristine weights back, bit for bit; what acts goes on acting as branches."""
        self._become(_Wish(self._wish.strengths, is_fused=False))

    @property
    def state(self) -> RackState:
        """What is registered, what acts and how: print it."""
        return RackState(
            is_fused=self._wish.is_fused,
            adapters=tuple(self._adapter_state(name) for name in self._entries),
            num_samples=len(self._wish.strengths),
            num_fused=len(self._weights.sites),
            branches={name: self._stuck.get(name, "") for name in sorted(self._branches.hung)},
            lost=self._weights.lost(self._weights.sites),
            home=self._weights.home,
            buffer_bytes=self._weights.buffer_bytes,
            stack_bytes=self._branches.cache.size_bytes,
        )

    # ---- one road for every change

    def _become(self, wish: _Wish) -> None:
        """Check what is wished, then make it so; if that fails half-way, make it what it was."""
        samples = [self._acting(strengths) for strengths in wish.strengths]
        self._check(samples, is_fused=wish.is_fused)
        try:
            self._realise(samples, is_fused=wish.is_fused)
        except BaseException:
            self._realise([self._acting(strengths) for strengths in self._wish.strengths], is_fused=self._wish.is_fused)
            raise
        self._wish = wish

    def _acting(self, strengths: Strengths) -> Acting:
        uses = []
        for name in sorted(strengths):
            entry = self._entry(name)
            numbers = by_module(name, strengths[name], entry.names)
            acting = {module: number for module, number in numbers.items() if number}
            if acting:
                uses.append(Use(name, entry.adapter.pairs, acting))
        return tuple(uses)

    def _check(self, samples: Sequence[Acting], *, is_fused: bool) -> None:
        self._weights.check_places()
        if any(map(bypasses, self._attentions)):
            touched = {name for acting in samples for use in acting for name in use.strengths}
            check_projections(self._sites[name] for name in touched | self._branches.hung | self._weights.sites)
        if len(samples) > 1 and is_fused:
            raise ConfigError(
                "While fused all samples have the same weights: restore() before adapters are set for each sample."
            )
        for name in {use.name for acting in samples for use in acting} - self._finite:
            self._entries[name].adapter.check_usable()
            self._finite.add(name)
        for use in (use for acting in samples for use in acting):
            self._check_special(use, per_sample=len(samples) > 1)

    def _check_special(self, use: Use, *, per_sample: bool) -> None:
        """A DoRA needs the weight it changes; a batch that a module sees as another batch cannot be told apart by samples."""
        doras = [name for name in use.strengths if use.pairs[name].magnitude]
        if per_sample:
            self._entries[use.name].adapter.check_plain(use.strengths)
            odd = [name for name in use.strengths if self._sites[name].kernel and name.startswith("transformer.")]
            if odd:
                raise MismatchError(
                    f"{use.name} acts on {odd[0]}, which sees the frames of all samples as one batch: use activate."
                )
        if lost := [name for name in doras if self._sites[name].obstacle]:
            raise MismatchError(f"{use.name} is a DoRA, and {lost[0]} cannot be: {self._sites[lost[0]].obstacle}.")

    def _realise(self, samples: Sequence[Acting], *, is_fused: bool) -> None:
        self._stuck = self._obstacles(samples[0]) if is_fused else {}
        fused = only(samples[0], lambda name: name not in self._stuck) if is_fused else ()
        self._weights.apply(fused)
        self._branches.apply([only(samples[0], self._stuck.__contains__)] if is_fused else samples)

    def _obstacles(self, acting: Acting) -> dict[str, str]:
        """Why a module cannot be fused, or better is not, by module."""
        found = {}
        for name, uses in uses_by_site(acting).items():
            if why := self._sites[name].obstacle:
                found[name] = why
            elif self._keep_branches_over < math.inf:
                lost = rounding_loss(self._weights.pristine(name), uses)
                found |= {name: f"rounding would take {lost:.0%} of its update"} if lost > self._keep_branches_over else {}
        return found

    def _warn_of_rounding(self) -> None:
        """Look at a few modules only: this is to notice an adapter that mostly vanishes, `state` has all figures."""
        if self._keeps_mean:
            return
        names = sorted(self._weights.sites)
        lost = self._weights.lost(names[:: max(1, len(names) // _LOOKED_AT)])
        worst = max(lost, key=lambda name: lost[name], default="")
        if worst and lost[worst] > _MOSTLY:
            warnings.warn(
                f"Rounding to {self._sites[worst].weight.dtype} takes {lost[worst]:.0%} of the update of {worst}: "
                f"a Rack with keep_branches_over={_MOSTLY} leaves such modules as branches.",
                stacklevel=3,
            )

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise ConfigError(f"No adapter is registered as {name!r}: {nearest(name, self._entries)}")
        return self._entries[name]

    def _adapter_state(self, name: str) -> AdapterState:
        entry = self._entries[name]
        strengths = tuple(sample.get(name, 0.0) for sample in self._wish.strengths)
        read_from = "memory" if entry.source == "memory" else "file"
        told = {
            "source": entry.source,
            "notes": entry.notes,
            "is_pinned": name in self._branches.cache.pinned,
            "resident": (read_from, *self._branches.cache.devices_of(name)),
        }
        return AdapterState.of(name, entry.adapter, strengths=strengths, **told)

    def _fingerprints(self, role: str) -> Mapping[str, str]:
        """Of the pristine base, computed when the first adapter asks."""
        if role not in self._bases:
            fused = {path: name for name in self._weights.sites for its, path in [split_role(name)] if its == role}
            pristine = {f"{path}.weight": self._weights.pristine(name) for path, name in fused.items()}
            self._bases[role] = base_fingerprints(self._models[role], instead=pristine)
        return self._bases[role]
