"""The turn of the latent space: the same pictures, along axes of equal size."""

import pytest
import torch
from torch import einsum

from reelora.pocket.axes import absorb_axes, even_axes
from reelora.pocket.train_vae import build_vae

SIZES = torch.logspace(-1.5, 0.5, 16)


@pytest.fixture
def latents():
    codes = torch.randn(40, 5, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    return einsum("ij,nfjhw->nfihw", turn * SIZES, codes)


def test_every_axis_gets_the_same_size_and_the_whole_keeps_its_own(latents):
    axes = even_axes(latents)
    turned = einsum("ij,nfjhw->nfihw", axes, latents).movedim(2, -1).flatten(0, -2)
    moments = turned.T @ turned / len(turned)
    assert torch.allclose(axes, axes.T)
    assert torch.allclose(moments, torch.eye(16) * latents.square().mean(), atol=1e-4)


def test_the_vae_speaks_along_the_new_axes_and_draws_the_same(latents):
    torch.manual_seed(2)
    vae = build_vae().eval().requires_grad_(False)
    video = torch.rand(2, 3, 9, 64, 64) * 2 - 1
    codes = vae.encode(video, return_dict=False)[0].mode()
    drawn = vae.decode(codes, return_dict=False)[0]
    axes, spread = even_axes(latents), torch.rand(16) + 0.1
    absorb_axes(vae, axes, spread)
    posterior = vae.encode(video, return_dict=False)[0]
    assert torch.allclose(posterior.mean, einsum("ij,njfhw->nifhw", axes, codes), atol=1e-4)
    assert torch.allclose(posterior.var, (axes.square() @ spread).view(1, -1, 1, 1, 1).expand_as(posterior.var))
    assert torch.allclose(vae.decode(posterior.mean, return_dict=False)[0], drawn, atol=1e-4)
