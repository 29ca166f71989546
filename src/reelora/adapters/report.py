"""What can be said of an adapter: from its header alone, from its values, and beside the weights of its base."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from reelora.errors import MismatchError, first_few
from reelora.tensorio import fingerprint

from .adapter import Adapter, split_role
from .algebra import spectrum
from .base import base_of
from .header import OURS
from .marks import producer_of
from .pair import Pair

__all__ = ["ModuleReport", "advice_on", "check_fits", "content_hash", "facts_of", "report_modules"]

STORED_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Entries in which programs store a hash of the tensors."""

RANK_MARGIN = 4
"""A rank this many times the effective one is worth a resize."""


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """What the values of one module say."""

    name: str
    rank: int
    is_finite: bool
    is_dead: bool
    """Whether the update is zero."""
    effective_rank: int
    """Singular values that hold 99 % of the energy."""
    norm: float | None
    """Frobenius norm of the update at strength 1; None while the scale is unknown, and for NaN."""
    bare_norm: float | None
    """Frobenius norm of ``B @ A``, that is at scale 1; None for NaN."""
    relative_norm: float | None = None
    """``|dW| / |W|``; None without a base."""
    fused_loss: float | None = None
    """``|round(W + dW) - round(W) - dW| / |dW|`` in bfloat16: the share of the update that fusing would lose."""


def facts_of(adapter: Adapter, metadata: Mapping[str, str] = MappingProxyType({})) -> dict[str, object]:
    """Everything that needs no values: for people and, as it stands, for JSON.

    ``metadata`` is the header of its file. What a file says of itself stands apart, under ``hashes``, ``provenance`` (ours) and
    ``metadata`` (of others), so that it can never pass for what was found here.
    """
    bases, sentence = base_of(adapter)
    scales = {pair.scale for pair in adapter.pairs.values() if pair.scale is not None}
    return {
        "layout": adapter.layout,
        "producer": producer_of(adapter.layout, metadata),
        "base": list(bases),
        "base_note": sentence,
        "roles": list(adapter.roles),
        "modules": len(adapter.pairs),
        "targets": dict(Counter(re.sub(r"\d+", "N", split_role(name)[1]) for name in adapter.pairs)),
        "layers": sorted({pair.shape for pair in adapter.pairs.values()}),
        "ranks": dict(sorted(Counter(pair.rank for pair in adapter.pairs.values()).items())),
        "scales": sorted(scales) or None,
        "scale_source": adapter.scale_source,
        "kind": ", ".join(sorted({_kind(pair) for pair in adapter.pairs.values()})),
        "dtypes": sorted({str(pair.dtype).removeprefix("torch.") for pair in adapter.pairs.values()}),
        "parameters": adapter.num_parameters,
        "size_bytes": adapter.size_bytes,
        "tokens": list(adapter.tokens),
        "trigger_words": _trigger_words(adapter, metadata),
        "hashes": {name: text for name, text in metadata.items() if name in STORED_HASHES},
        "provenance": dict(adapter.provenance),
        "metadata": {name: text for name, text in metadata.items() if not name.startswith(OURS) and name not in STORED_HASHES},
    }


def _trigger_words(adapter: Adapter, metadata: Mapping[str, str]) -> list[str]:
    """Source of ``trigger_phrase``: Stability AI's ModelSpec."""
    told = f"{adapter.provenance.get('trigger_words', '')},{metadata.get('modelspec.trigger_phrase', '')}"
    return [word.strip() for word in told.split(",") if word.strip()]


def content_hash(adapter: Adapter) -> str:
    """SHA-256 over names, dtypes and values of all factors, the scales, and the norms and kind of a DoRA.

    Equal for equal adapters in any file or layout.
    """
    modules = sorted((name, _pair_hash(pair)) for name, pair in adapter.pairs.items())
    return hashlib.sha256(json.dumps(modules).encode()).hexdigest()


def _pair_hash(pair: Pair) -> str:
    scale = torch.tensor(torch.nan if pair.scale is None else pair.scale, dtype=torch.float64)
    norms = {str(pair.magnitude): pair.magnitude.values} if pair.magnitude else {}
    return fingerprint({"a": pair.a, "b": pair.b, "scale": scale, **norms})


def check_fits(adapter: Adapter, base: Mapping[str, Tensor], role: str) -> None:
    """Raise MismatchError with all modules of a role that the base has not, or has in another shape."""
    odd = []
    for name, pair in adapter.pairs.items():
        its, path = split_role(name)
        weight = base.get(f"{path}.weight") if its == role else None
        if its == role and (weight is None or weight.ndim < 2 or weight.flatten(1).shape != pair.shape):
            odd.append(f"{path} ({'none' if weight is None else tuple(weight.shape)}, not {pair.shape})")
    if odd:
        raise MismatchError(f"{len(odd)} of {len(adapter.pairs)} modules do not fit this base: {first_few(odd)}")


def report_modules(adapter: Adapter, base: Mapping[str, Tensor] | None = None, role: str = "") -> Iterator[ModuleReport]:
    """One report per module, in their order, each read when asked for; ``base`` holds the weights of ``role``."""
    for name, pair in adapter.pairs.items():
        its, path = split_role(name)
        yield _report(name, pair, base[f"{path}.weight"] if base is not None and its == role else None)


def _report(name: str, pair: Pair, weight: Tensor | None) -> ModuleReport:
    whole = replace(pair, a=pair.a, b=pair.b, scale=1.0)
    if not whole.is_finite:
        return ModuleReport(
            name=name, rank=pair.rank, is_finite=False, is_dead=False, effective_rank=0, norm=None, bare_norm=None
        )
    bare, is_off = spectrum(whole), pair.scale == 0
    assert bare.norm is not None, "its scale is known"
    relative, loss = None, None
    if weight is not None and pair.scale is not None and not pair.magnitude:
        relative, loss = _against(weight.flatten(1).float(), (whole.b.float() @ whole.a.float()).mul_(pair.scale))
    return ModuleReport(
        name=name,
        rank=pair.rank,
        is_finite=True,
        is_dead=bare.is_dead or is_off,
        effective_rank=0 if is_off else bare.effective_rank,
        norm=None if pair.scale is None else abs(pair.scale) * bare.norm,
        bare_norm=bare.norm,
        relative_norm=relative,
        fused_loss=loss,
    )


def _against(base: Tensor, update: Tensor) -> tuple[float, float]:
    """|dW| / |W|, and the share of dW that rounding the sum to bfloat16 loses."""
    norm = torch.linalg.matrix_norm(update)
    effect = (base + update).bfloat16().float() - base.bfloat16().float()
    lost = torch.linalg.matrix_norm(effect - update)
    return float(norm / torch.linalg.matrix_norm(base)), float(lost / norm) if norm else 0.0


def _kind(pair: Pair) -> str:
    return f"{pair.kind} on a convolution" if pair.kernel else pair.kind


def advice_on(adapter: Adapter, modules: list[ModuleReport]) -> list[str]:
    """What a user of this adapter should know, in plain words; ``modules`` may be empty."""
    return [sentence for rule in _RULES if (sentence := rule(adapter, modules))]


def _unknown(adapter: Adapter, modules: list[ModuleReport]) -> str:
    lost = sum(pair.scale is None for pair in adapter.pairs.values())
    return "" if not lost else "Nothing says how strong it was trained: give --alpha, or --from with the program that made it."


def _alpha_one(adapter: Adapter, modules: list[ModuleReport]) -> str:
    odd = [pair for pair in adapter.pairs.values() if pair.scale and pair.rank > 1 and pair.scale * pair.rank == 1]
    return f"{len(odd)} modules have alpha 1: their update is scaled by 1 / rank and may be too weak to see." if odd else ""


def _broken(adapter: Adapter, modules: list[ModuleReport]) -> str:
    odd = [module.name for module in modules if not module.is_finite]
    return f"{len(odd)} modules hold NaN or infinite values and cannot be used: {first_few(odd)}." if odd else ""


def _dead(adapter: Adapter, modules: list[ModuleReport]) -> str:
    odd = [module.name for module in modules if module.is_dead]
    return f"{len(odd)} of {len(modules)} modules change nothing (A or B is zero): {first_few(odd)}." if odd else ""


def _oversized(adapter: Adapter, modules: list[ModuleReport]) -> str:
    alive = [module for module in modules if module.is_finite and not module.is_dead]
    odd = [module for module in alive if module.rank >= RANK_MARGIN * module.effective_rank]
    if not odd:
        return ""
    wanted = max(module.effective_rank for module in alive)
    return (
        f"In {len(odd)} of {len(modules)} modules the rank is {RANK_MARGIN} times what 99 % of the update needs: "
        f"`reelora resize --keep 0.99` makes it smaller (rank {wanted} at most)."
    )


def _vanishing(adapter: Adapter, modules: list[ModuleReport]) -> str:
    odd = [module for module in modules if module.fused_loss is not None and module.fused_loss > 0.25]
    return f"Fused into bfloat16, {len(odd)} modules would lose over a quarter of their update: use branches." if odd else ""


_RULES = (_unknown, _alpha_one, _broken, _dead, _oversized, _vanishing)
