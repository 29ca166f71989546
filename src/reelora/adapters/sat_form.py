"""An adapter as SAT holds it: every layer, all four projections, one rank, and a scale of 1 / r."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from reelora.errors import AdapterError, first_few
from reelora.layouts import Layout

from .adapter import Adapter
from .base import depth_of_base
from .pair import Pair

__all__ = ["sat_tensors"]

LEAVES = ("to_q", "to_k", "to_v", "to_out.0")
_MODULE = re.compile(r"transformer\.transformer_blocks\.(?P<layer>\d+)\.attn1\.(?P<leaf>to_[qkv]|to_out\.0)")


def sat_tensors(adapter: Adapter, row: Layout, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Eight tensors for each layer of the base (where none is known, up to the adapter's last), and what was changed.

    SAT scales by ``lora_alpha / r``, and its lora_alpha is 1 unless a YAML says otherwise: B takes ``scale * r``, in float32.
    Pairs of lower rank get rows and columns of zeros, projections that the adapter lacks are zeros. Raises AdapterError for
    modules that SAT has no LoRA for. Source: sat/model/finetune/lora2.py.
    """
    if lost := [name for name, pair in adapter.pairs.items() if not _MODULE.fullmatch(name) or pair.kernel or pair.magnitude]:
        raise AdapterError(
            f"SAT has plain LoRAs of {', '.join(LEAVES)} in a CogVideoX transformer only; "
            f"{len(lost)} of {len(adapter.pairs)} modules are none: {first_few(lost)}"
        )
    rank = max(adapter.ranks)
    deepest = max(int(match["layer"]) for name in adapter.pairs if (match := _MODULE.fullmatch(name)))
    layers = depth_of_base(adapter) or deepest + 1
    names = [f"transformer.transformer_blocks.{layer}.attn1.{leaf}" for layer in range(layers) for leaf in LEAVES]
    example = next(iter(adapter.pairs.values()))
    tensors: dict[str | None, Tensor] = {}
    for name in names:
        a, b = _factors(adapter.pairs.get(name), rank, example, dtype)
        tensors |= {row.grammar.spell(name, "A"): a, row.grammar.spell(name, "B"): b}
    return {key: tensor for key, tensor in tensors.items() if key}, tuple(_notes(adapter.pairs, names, rank))


def _factors(pair: Pair | None, rank: int, example: Pair, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    if pair is None:
        out_features, in_features = example.shape
        kind = dtype or example.a.dtype
        return torch.zeros(rank, in_features, dtype=kind), torch.zeros(out_features, rank, dtype=kind)
    assert pair.scale is not None, "check_usable comes first"
    b = (pair.b.detach().float() * (pair.scale * rank)).to(dtype or pair.b.dtype)
    a = pair.a.detach().to(dtype or pair.a.dtype)
    if missing := rank - pair.rank:
        a, b = pad(a, (0, 0, 0, missing)), pad(b, (0, missing))
    return a.contiguous(), b.contiguous()


def _notes(pairs: Mapping[str, Pair], names: list[str], rank: int) -> list[str]:
    notes = [f"the scale is folded into B: SAT computes 1 / {rank} * B @ A with its default lora_alpha 1"]
    if lower := [name for name, pair in pairs.items() if pair.rank < rank]:
        notes.append(f"{len(lower)} pairs of lower rank are padded with zeros to {rank}: {first_few(lower)}")
    if lost := [name for name in names if name not in pairs]:
        notes.append(f"{len(lost)} projections that the adapter lacks are zeros: {first_few(lost)}")
    return notes
