"""The transformer is called as its pipeline calls it."""

import pytest
import torch

from reelora.train.predict import cogvideox_predictor

VERSIONS = {"1.0": {}, "1.5": {"patch_size_t": 2, "sample_frames": 17}}


@pytest.mark.parametrize(("version", "frames"), [("1.0", 3), ("1.5", 4)])
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
