"""Tokens are where the stock pipeline puts them, and portrait has places too."""

from typing import Any

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from tiny_models import build_transformer

from reelora.components import rotary_positions

CPU = torch.device("cpu")


@pytest.fixture(params=["5B", "1.5"])
def transformer(request):
    return build_transformer(request.param, sample_height=4, sample_width=8)


def stock_positions(transformer, frames, height, width):
    nothing: Any = None
    pipeline = CogVideoXPipeline(nothing, nothing, nothing, transformer, nothing)
    return pipeline._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, CPU)


@pytest.mark.parametrize(("height", "width"), [(4, 8), (2, 8), (4, 2)])
def test_rotary_positions_equal_those_of_the_pipeline(transformer, height, width):
    ours = rotary_positions(transformer.config, num_latent_frames=4, height=height, width=width, device=CPU)
    theirs = stock_positions(transformer, 4, height, width)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_portrait_has_positions_too(transformer):
    """Stock slices them out of a landscape table for CogVideoX 1.5, so that there are fewer than tokens."""
    cosines, sines = rotary_positions(transformer.config, num_latent_frames=4, height=8, width=4, device=CPU)
    assert len(cosines) == len(sines) == (4 // (transformer.config.patch_size_t or 1)) * 4 * 2


def test_the_upper_rows_of_a_portrait_are_those_of_a_landscape():
    """CogVideoX 1.5 counts rows and columns from the corner, whatever the size."""
    config = build_transformer("1.5", sample_height=4, sample_width=8).config
    portrait, landscape = (
        rotary_positions(config, num_latent_frames=2, height=height, width=4, device=CPU)[0] for height in (8, 4)
    )
    assert torch.equal(portrait[: len(landscape)], landscape)
