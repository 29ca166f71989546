"""Adapters whose updates are known."""

import torch
from torch import Tensor

from reelora.adapters import Adapter, Pair

NAMES = tuple(f"transformer.transformer_blocks.{block}.attn1.{part}" for block in (0, 1) for part in ("to_q", "to_out.0"))
Q = NAMES[0]


def adapter_of(pairs: dict[str, Pair], **provenance: str) -> Adapter:
    return Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test", provenance=provenance)


def random_pair(seed: int, *, rank=4, out=12, inp=10, scale: float | None = 0.5, dtype=torch.float32) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    return Pair(torch.randn(rank, inp, generator=draw).to(dtype), torch.randn(out, rank, generator=draw).to(dtype), scale)


def random_adapter(seed: int, *, names=NAMES, **settings) -> Adapter:
    return adapter_of({name: random_pair(97 * seed + place, **settings) for place, name in enumerate(names)})


def matrix_with(values, *, out=12, inp=10, seed=0) -> Tensor:
    """A float64 matrix with these singular values."""
    pair = pair_with(values, out=out, inp=inp, seed=seed, scale=1.0, dtype=torch.float64)
    return pair.b @ pair.a


def pair_with(values, *, out=12, inp=10, scale=0.5, seed=0, dtype=torch.float32) -> Pair:
    """A pair whose update has these singular values."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    u = torch.linalg.qr(torch.randn(out, len(values), generator=draw, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(inp, len(values), generator=draw, dtype=torch.float64)).Q
    return Pair(v.mT.to(dtype).contiguous(), (u * values / scale).to(dtype), scale)


def dense(pair: Pair) -> Tensor:
    """The update of a pair, in float64."""
    assert pair.scale is not None
    return pair.scale * (pair.b.double() @ pair.a.double())


def gap(expected: Tensor, actual: Tensor) -> float:
    """Relative difference of two dense updates."""
    return float((expected - actual).norm() / expected.norm())
