"""The smallest forward of every class of model that an adapter can be for."""

from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny_models import build_clip, build_text_encoder, build_transformer, build_unet, build_vae

from reelora.errors import ConfigError
from reelora.recipes.doctor.probe import probe


def build_sdxl_unet() -> Any:
    """A UNet that is told sizes and a pooled prompt of 24 channels."""
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72}
    return UNet2DConditionModel.from_config(dict(build_unet().config) | told)


MODELS = {
    "2B": lambda: build_transformer("2B"),
    "5B": lambda: build_transformer("5B"),
    "5B-I2V": lambda: build_transformer("5B-I2V"),
    "1.5": lambda: build_transformer("1.5"),
    "1.5-I2V": lambda: build_transformer("1.5", in_channels=8, ofs_embed_dim=8),
    "SD 1.5": build_unet,
    "SDXL": build_sdxl_unet,
    "T5": build_text_encoder,
    "CLIP": build_clip,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_the_same_twice_and_otherwise_with_other_weights(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    answer = probe(model)
    assert answer.isfinite().all()
    assert torch.equal(answer, probe(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(answer, probe(model))


def test_a_model_in_bfloat16_is_asked_in_bfloat16():
    assert probe(build_transformer("5B").eval().bfloat16()).dtype == torch.float32


def test_a_model_without_such_an_input_is_refused_by_name():
    with pytest.raises(ConfigError, match="AutoencoderKLCogVideoX cannot be tried"):
        probe(build_vae())
