"""An adapter: the pairs of its modules, how strong they are, and where they come from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from torch import Tensor

from reelora.errors import AdapterError, ConfigError, UnknownScaleError, first_few, nearest
from reelora.layouts import ROLES

from .pair import Pair, Update
from .producers import PRODUCERS
from .spec import LoraSpec

__all__ = ["ROLES", "Adapter", "Pair", "by_role", "spec_of", "split_role"]

T = TypeVar("T")


def split_role(name: str) -> tuple[str, str]:
    """Role and module path of a name: ``transformer.blocks.0.to_q`` is ``transformer`` and ``blocks.0.to_q``."""
    role, _, path = name.partition(".")
    return role, path


def by_role(values: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Values by role, and there by module path."""
    roles: dict[str, dict[str, T]] = {}
    for name, value in values.items():
        role, path = split_role(name)
        roles.setdefault(role, {})[path] = value
    return roles


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Adapter:
    """A trained LoRA as data; it never changes. Names are ``role.path``: ``transformer.transformer_blocks.0.attn1.to_q``.

    Raises AdapterError at birth for no pairs at all, names without a role, and provenance that is not text.
    """

    pairs: Mapping[str, Pair]
    spec: LoraSpec | None
    """The settings it was trained with; None while the scale is unknown."""
    layout: str
    """The dialect it was read from, ``memory`` if from none."""
    scale_source: str
    """Which rule says how strong it is, in words."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Where it comes from: base fingerprint, data and config hash, version, trigger words ..."""
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    """Textual-inversion embeddings that came with it, by word (``<s1>``)."""

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise AdapterError("This is no adapter:\n" + "\n".join(f"- {problem}" for problem in problems))
        for name in ("pairs", "provenance", "tokens"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def roles(self) -> tuple[str, ...]:
        """The parts of a pipeline that it changes."""
        held = by_role(self.pairs)
        return tuple(role for role in ROLES if role in held)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks of its pairs, ascending."""
        return tuple(sorted({pair.rank for pair in self.pairs.values()}))

    @property
    def num_parameters(self) -> int:
        return sum(pair.num_parameters for pair in self.pairs.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of A and B of all pairs, in the dtype that is stored."""
        return sum(pair.size_bytes for pair in self.pairs.values())

    def delta(self, name: str) -> Update:
        """The dense update ``scale * B @ A`` of one module at strength 1, in float32.

        Raises ConfigError for a name it has not, UnknownScaleError while the scale is unknown, AdapterError for NaN or Inf and
        for a DoRA, whose update depends on the base.
        """
        if name not in self.pairs:
            raise ConfigError(f"The adapter has no pair for {name!r}: {nearest(name, self.pairs)}")
        self.check_usable([name])
        self.check_plain([name])
        pair = self.pairs[name]
        return (pair.b.float() @ pair.a.float()).mul_(_known(pair.scale))

    def check_usable(self, names: Iterable[str] | None = None) -> None:
        """Raise unless every scale is known (UnknownScaleError) and every value finite (AdapterError)."""
        self.check_scale()
        pairs = self._chosen(names)
        if bad := [name for name, pair in pairs.items() if not pair.is_finite]:
            raise AdapterError(
                f"{len(bad)} of {len(pairs)} pairs hold NaN or infinite values: {first_few(bad)}. "
                "The training run or the file is broken; use an earlier checkpoint."
            )

    def check_scale(self) -> None:
        """Raise UnknownScaleError unless the scale of every pair is known."""
        if unknown := [name for name, pair in self.pairs.items() if pair.scale is None]:
            raise UnknownScaleError(
                f"Nothing says how strong this adapter was trained ({self.scale_source}; {len(unknown)} of {len(self.pairs)} "
                f"pairs, rank {', '.join(map(str, self.ranks))}). Read it again with alpha= (the trainer's lora_alpha), "
                f"or with producer= if one of these made it: {', '.join(PRODUCERS)}."
            )

    def check_plain(self, names: Iterable[str] | None = None) -> None:
        """Raise AdapterError if a pair is a DoRA, whose update is not ``scale * B @ A``."""
        if doras := [name for name, pair in self._chosen(names).items() if pair.magnitude]:
            raise AdapterError(
                f"{len(doras)} pairs are a {self.pairs[doras[0]].magnitude}: {first_few(doras)}. "
                "The update of a DoRA depends on the weights of its base, so it cannot be had from the adapter alone."
            )

    def with_provenance(self, **entries: str) -> "Adapter":
        """The same adapter with these entries of its provenance added or replaced."""
        return replace(self, provenance={**self.provenance, **entries})

    def _chosen(self, names: Iterable[str] | None) -> Mapping[str, Pair]:
        return self.pairs if names is None else {name: self.pairs[name] for name in names}

    def __repr__(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        return f"Adapter({len(self.pairs)} pairs of {', '.join(self.roles)}, rank {ranks}, scale by {self.scale_source})"


def spec_of(pairs: Mapping[str, Pair]) -> LoraSpec | None:
    """A spec that describes every pair: by path for one role, by full name for several; None while a scale is unknown."""
    roles = by_role(pairs)
    named = next(iter(roles.values())) if len(roles) == 1 else pairs
    scales = {name: pair.scale for name, pair in named.items() if pair.scale is not None}
    return LoraSpec.describing({name: pair.rank for name, pair in named.items()}, scales) if len(scales) == len(pairs) else None


def _problems(adapter: Adapter) -> list[str]:
    problems = [] if adapter.pairs else ["it has no pairs"]
    if lost := [name for name in adapter.pairs if split_role(name)[0] not in ROLES or not split_role(name)[1]]:
        problems.append(f"{len(lost)} names do not begin with a role ({', '.join(ROLES)}): {first_few(lost)}")
    if odd := [key for key, value in adapter.provenance.items() if not (isinstance(key, str) and isinstance(value, str))]:
        problems.append(f"provenance has to be text: {first_few([str(key) for key in odd])}")
    return problems


def _known(scale: float | None) -> float:
    assert scale is not None, "check_scale comes first"
    return scale
