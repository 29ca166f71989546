"""The transformer is called as its pipeline calls it."""

from typing import Any

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

from reelora.train.predict import cogvideox_predictor, rotary_positions

VERSIONS = {"1.0": {}, "1.5": {"patch_size_t": 2, "sample_frames": 17}}


def pipeline_positions(transformer, frames, height, width):
    nothing: Any = None
    pipeline = CogVideoXPipeline(nothing, nothing, nothing, transformer, nothing)
    return pipeline._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, torch.device("cpu"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 4), (4, 2)])
def test_rotary_positions_equal_those_of_the_pipeline(branched, version, height, width):
    transformer = branched(**VERSIONS[version])
    ours = rotary_positions(transformer.config, num_latent_frames=4, height=height, width=width, device=torch.device("cpu"))
    theirs = pipeline_positions(transformer, 4, height, width)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_size_beyond_the_trained_grid_has_positions_too(branched):
    """diffusers crashes there for CogVideoX 1.5: its table ends at the trained grid."""
    transformer = branched(**VERSIONS["1.5"])
    cosines, _ = rotary_positions(transformer.config, num_latent_frames=4, height=8, width=4, device=torch.device("cpu"))
    assert len(cosines) == 2 * 4 * 2


@pytest.mark.parametrize(("version", "frames"), [("1.0", 3), ("1.5", 4), ("1.5", 5)])
def test_the_prediction_is_as_long_as_the_latents(branched, version, frames):
    predict = cogvideox_predictor(branched(**VERSIONS[version]))
    noisy = torch.randn(1, frames, 3, 4, 4)
    predicted = predict(noisy, torch.randn(1, 6, 4), torch.tensor([3]))
    assert predicted.shape == noisy.shape
    assert predicted.dtype == torch.float32


def test_a_model_without_rotary_positions_gets_none(branched):
    predict = cogvideox_predictor(branched(use_rotary_positional_embeddings=False))
    assert predict(torch.randn(1, 3, 3, 4, 4), torch.randn(1, 6, 4), torch.tensor([3])).isfinite().all()


def test_a_bfloat16_base_is_run_in_bfloat16_whatever_comes_in(branched):
    transformer = branched().to(torch.bfloat16)
    seen = []
    transformer.proj_out.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    assert (
        cogvideox_predictor(transformer)(torch.randn(1, 3, 3, 4, 4), torch.randn(1, 6, 4), torch.tensor([3])).dtype
        == torch.float32
    )
    assert seen == [torch.bfloat16]
