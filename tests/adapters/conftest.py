"""Adapters out of nothing."""

import pytest
import torch

from reelora.adapters import Adapter, LoraSpec, Pair

NAMES = [f"transformer.transformer_blocks.{block}.attn1.{part}" for block in (0, 1) for part in ("to_q", "to_out.0")]


def make_adapter(*, rank=4, alpha=2.0, names=NAMES, provenance=None, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    spec = LoraSpec(rank=rank, alpha=alpha, target_modules=("to_q", "to_out.0"))
    pairs = {
        name: Pair(torch.randn(rank, 8, generator=draw).to(dtype), torch.randn(6, rank, generator=draw).to(dtype), spec.scale)
        for name in names
    }
    return Adapter(pairs=pairs, spec=spec, layout="memory", scale_source="a test", provenance=provenance or {})


@pytest.fixture
def adapter():
    return make_adapter()


@pytest.fixture
def make():
    return make_adapter
