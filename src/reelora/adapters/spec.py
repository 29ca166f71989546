"""How a LoRA is shaped and trained."""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeGuard, TypeVar, get_args

from reelora.errors import ConfigError, first_few, nearest
from reelora.tensorio import shown

from . import peft_schema
from .advice import Advice, advise
from .patterns import Patterns, endings, pattern_problems

__all__ = ["ATTENTION_TARGETS", "Init", "LoraSpec", "alpha_for"]

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The four projections of every attention in diffusers' models."""

Init = Literal["kaiming", "gaussian"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The settings of one LoRA: every targeted Linear ``W`` becomes ``W + scale * B @ A``, A ``(rank, in)``, B ``(out, rank)``.

    Made only if possible: ConfigError lists everything that is not. Settings that are possible but poor are left to
    `advice`. Source: Hu et al., LoRA, arXiv:2106.09685, section 4.1; rsLoRA: Kalajdzievski, arXiv:2312.03732.
    """

    rank: int = 128
    alpha: float = 64
    """The update is scaled by ``alpha / rank`` (rsLoRA: ``alpha / sqrt(rank)``)."""
    target_modules: tuple[str, ...] | str = ATTENTION_TARGETS
    """Path endings of whole components (``to_q`` fits ``blocks.0.attn1.to_q``), or one regular expression for whole paths."""
    init: Init = "kaiming"
    """How A is drawn: ``kaiming`` uniform within ``1 / sqrt(in)``, ``gaussian`` normal with deviation ``1 / rank``; B is 0."""
    dropout: float = 0.0
    """Share of the inputs of A that is dropped in training."""
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Ranks of single modules: a path ending (or a simple regular expression) and its rank; the first that fits counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Alphas of single modules, looked up like ``rank_pattern``."""

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):  # as JSON and TOML have them
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if problems := list(_problems(self)):
            raise ConfigError("This LoRA cannot be made:\n" + "\n".join(f"- {problem}" for problem in problems))

    @property
    def scale(self) -> float:
        """What ``B @ A`` is multiplied by, wherever no pattern says otherwise."""
        return self._scaled(self.alpha, self.rank)

    def rank_of(self, path: str) -> int:
        """The rank of the module at ``path`` (without its role)."""
        return self._ranks.at(path, self.rank)

    def alpha_of(self, path: str) -> float:
        """The alpha of the module at ``path`` (without its role)."""
        return self._alphas.at(path, self.alpha)

    def scale_of(self, path: str) -> float:
        """The scale of the module at ``path`` (without its role)."""
        return self._scaled(self.alpha_of(path), self.rank_of(path))

    def targets(self, path: str) -> bool:
        """Whether the module at ``path`` (without its role) is meant, by PEFT's rule."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, path) is not None
        return not self._targets.isdisjoint(endings(path))

    def advice(self, shapes: Mapping[str, tuple[int, int]] | None = None, *, model_class: str = "") -> tuple[Advice, ...]:
        """What is poor about these settings, for a model whose targeted Linears have ``shapes`` (path: out, in)."""
        return advise(self, shapes or {}, model_class)

    @classmethod
    def from_peft(cls, config: object) -> "LoraSpec":
        """The same settings from a ``peft.LoraConfig``, or from a mapping with its fields.

        Raises ConfigError with the name of every setting that a LoraSpec cannot hold (DoRA, biases, layer ranges ...).
        """
        return cls(**peft_schema.spec_fields(config))

    def to_peft_dict(self) -> dict[str, Any]:
        """Keyword arguments of the same ``peft.LoraConfig``; plain JSON, and only fields that every PEFT knows."""
        return peft_schema.config_fields(self)

    @classmethod
    def describing(cls, ranks: Mapping[str, int], scales: Mapping[str, float]) -> "LoraSpec":
        """The spec of modules whose ranks and scales are known: the commonest in front, the others as patterns."""
        alphas = {path: alpha_for(scales[path], rank) for path, rank in ranks.items()}
        rank, rank_pattern = _commonest(ranks)
        alpha, alpha_pattern = _commonest(alphas)
        return cls(rank=rank, alpha=alpha, target_modules=tuple(ranks), rank_pattern=rank_pattern, alpha_pattern=alpha_pattern)

    @cached_property
    def _targets(self) -> frozenset[str]:
        return frozenset(self.target_modules)

    @cached_property
    def _ranks(self) -> Patterns[int]:
        return Patterns(self.rank_pattern)

    @cached_property
    def _alphas(self) -> Patterns[float]:
        return Patterns(self.alpha_pattern)

    def _scaled(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def alpha_for(scale: float, rank: int) -> float:
    """The alpha with ``alpha / rank == scale`` to the last bit, and of those the one that is written shortest."""
    alpha = scale * rank
    near = (float(f"{alpha:.12g}"), alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    return next((candidate for candidate in near if candidate / rank == scale), alpha)


def _commonest(values: Mapping[str, T]) -> tuple[T, dict[str, T]]:
    """The commonest value, and an exact pattern for every path that has another."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{re.escape(path)}": value for path, value in values.items() if value != common}


def _problems(spec: LoraSpec) -> Iterator[str]:
    """One sentence for everything about a spec that is impossible."""
    ranks = {"rank": spec.rank, **_entries(spec, "rank_pattern")}
    if bad := [f"{name} is {shown(rank)}" for name, rank in ranks.items() if not _is_rank(rank)]:
        yield f"{first_few(bad)}: it has to be a whole number from 1 on"
    alphas = {"alpha": spec.alpha, **_entries(spec, "alpha_pattern")}
    if bad := [f"{name} is {shown(alpha)}" for name, alpha in alphas.items() if not _is_alpha(alpha)]:
        yield f"{first_few(bad)}: it has to be a number over 0 (often rank or rank / 2)"
    if spec.init not in get_args(Init):
        yield f"init is {shown(spec.init)}: {nearest(str(spec.init), get_args(Init))}"
    if not _is_number(spec.dropout) or not (0 <= spec.dropout < 1):
        yield f"dropout is {shown(spec.dropout)}: it has to lie in [0, 1)"
    if not isinstance(spec.rslora, bool):
        yield f"rslora is {shown(spec.rslora)}: it is true or false"
    yield from _target_problems(spec.target_modules)
    for name in ("rank_pattern", "alpha_pattern"):
        yield from _pattern_problems(name, getattr(spec, name))


def _target_problems(targets: object) -> Iterator[str]:
    if isinstance(targets, str):
        yield from _regex_problems(targets)
    elif not isinstance(targets, tuple) or not targets:
        yield f"target_modules is {shown(targets)}: name at least one module, for example {', '.join(ATTENTION_TARGETS)}"
    elif bad := [target for target in targets if not isinstance(target, str) or not target.strip(".")]:
        yield f"target_modules holds {shown(bad[0])}, which is no module path"


def _pattern_problems(name: str, patterns: object) -> Iterator[str]:
    if not isinstance(patterns, Mapping):
        yield f"{name} is {shown(patterns)}: it has to map path endings to numbers"
    elif problems := list(pattern_problems(patterns)):
        yield f"{name}: {first_few(problems)}"


def _regex_problems(pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        yield f"target_modules {shown(pattern)} is no regular expression: {error}"
    if not pattern:
        yield "target_modules is empty: name at least one module"


def _entries(spec: LoraSpec, name: str) -> dict[str, object]:
    patterns = getattr(spec, name)
    return {f"{name}[{shown(key)}]": value for key, value in patterns.items()} if isinstance(patterns, Mapping) else {}


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_alpha(value: object) -> bool:
    return _is_number(value) and 0 < value < sys.float_info.max


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
