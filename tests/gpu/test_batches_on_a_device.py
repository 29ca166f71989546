"""Batches that an accelerator copies by itself."""

import pytest
import torch

from reelora.train.batches import Batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_a_pinned_batch_arrives_as_it_is():
    def make(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))

    clip = (2, 3, 16, 60, 90)
    batch = Batch(
        clean=make(*clip),
        noise=make(*clip),
        timesteps=torch.tensor([1, 2]),
        states=make(2, 226, 64),
        extras={"image": make(*clip)},
        weights=torch.ones(2),
        sources=("one", "other"),
    )
    pinned = batch.pinned()
    there = pinned.to(torch.device("cuda"))
    for name in ("clean", "noise", "timesteps", "states", "weights"):
        assert getattr(pinned, name).is_pinned()
        assert torch.equal(getattr(there, name).cpu(), getattr(batch, name))
    assert pinned.extras["image"].is_pinned()
    assert torch.equal(there.extras["image"].cpu(), batch.extras["image"])
    assert there.sources == batch.sources
