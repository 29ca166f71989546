"""An adapter: the pairs of its modules, how strong they are, and where they come from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.errors import AdapterError, ConfigError, UnknownScaleError, first_few, nearest

from .producers import PRODUCERS
from .spec import LoraSpec

__all__ = ["ROLES", "Adapter", "FactorA", "FactorB", "Pair", "Update", "by_role", "pair_problem", "split_role"]

ROLES = ("transformer", "unet", "text_encoder", "text_encoder_2")
"""The parts of a pipeline that an adapter may change; every module name begins with one."""

T = TypeVar("T")

FactorA = Float[Tensor, "r i"]
FactorB = Float[Tensor, "o r"]
Update = Float[Tensor, "o i"]


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


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """The factors of one module's update ``scale * B @ A``: A ``(r, in)``, B ``(out, r)``; scale None while nobody knows it.

    Raises AdapterError when the shapes do not fit together or the scale is no finite number.
    """

    a: FactorA
    b: FactorB
    scale: float | None

    def __post_init__(self) -> None:
        if problem := pair_problem(tuple(self.a.shape), tuple(self.b.shape)):
            raise AdapterError(problem)
        if self.scale is not None and not math.isfinite(self.scale):
            raise AdapterError(f"The scale of a pair is {self.scale}: it has to be a finite number, or None if unknown.")

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def num_parameters(self) -> int:
        return self.a.numel() + self.b.numel()

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite (reads all of them)."""
        return bool(torch.isfinite(self.a).all() and torch.isfinite(self.b).all())

    def __repr__(self) -> str:
        return f"Pair({self.shape[0]} x {self.shape[1]}, rank {self.rank}, scale {self.scale}, {self.a.dtype})"


def pair_problem(a: tuple[int, ...], b: tuple[int, ...]) -> str:
    """What is wrong with the shapes of A and B; empty if nothing."""
    if len(a) != 2 or len(b) != 2:
        return f"A is {a} and B {b}: both have to be matrices, A (rank, in) and B (out, rank)"
    if a[0] != b[1] or not a[0]:
        return f"A is {a} and B {b}: the rank, first of A and second of B, has to be the same and at least 1"
    return ""


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

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise AdapterError("This is no adapter:\n" + "\n".join(f"- {problem}" for problem in problems))
        object.__setattr__(self, "pairs", MappingProxyType(dict(self.pairs)))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

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

    def delta(self, name: str) -> Update:
        """The dense update ``scale * B @ A`` of one module at strength 1, in float32.

        Raises ConfigError for a name it has not, UnknownScaleError while the scale is unknown, AdapterError for NaN or Inf.
        """
        if name not in self.pairs:
            raise ConfigError(f"The adapter has no pair for {name!r}: {nearest(name, self.pairs)}")
        self.check_usable([name])
        pair = self.pairs[name]
        return (pair.b.float() @ pair.a.float()).mul_(_known(pair.scale))

    def check_usable(self, names: list[str] | None = None) -> None:
        """Raise unless every scale is known (UnknownScaleError) and every value finite (AdapterError)."""
        self.check_scale()
        pairs = self.pairs if names is None else {name: self.pairs[name] for name in names}
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

    def with_provenance(self, **entries: str) -> "Adapter":
        """The same adapter with these entries of its provenance added or replaced."""
        return replace(self, provenance={**self.provenance, **entries})

    def __repr__(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        return f"Adapter({len(self.pairs)} pairs of {', '.join(self.roles)}, rank {ranks}, scale by {self.scale_source})"


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
