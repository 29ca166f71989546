"""Which published models an adapter can be for, told from shapes alone."""

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from reelora.catalog import MODELS, fitting_models, num_layers_of
from reelora.catalog.models import SIGNATURES

COGVIDEOX, UNET = "CogVideoXTransformer3DModel", "UNet2DConditionModel"
FIVE = {"CogVideoX-5B", "CogVideoX-5B-I2V", "CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V"}


def fitting(shapes, model_class=COGVIDEOX):
    return {row.name for row in fitting_models(shapes, model_class)}


def attention(width, num_layers):
    return {f"transformer_blocks.{layer}.attn1.to_q": (width, width) for layer in range(num_layers)}


def test_attention_tells_2b_from_5b_but_not_the_5b_models_apart():
    assert fitting(attention(1920, 30)) == {"CogVideoX-2B"}
    assert fitting(attention(3072, 42)) == FIVE
    assert fitting(attention(192, 6)) == {"pocket"}


@pytest.mark.parametrize("shapes", [attention(1920, 31), attention(64, 2), {"transformer_blocks.0.attn1.to_q": (3072, 1920)}])
def test_more_blocks_or_other_widths_fit_nothing(shapes):
    assert fitting(shapes) == set()


def test_an_adapter_of_some_blocks_still_fits():
    assert fitting({"transformer_blocks.7.ff.net.2": (1920, 7680)}) == {"CogVideoX-2B"}


def test_the_patch_embedding_tells_the_5b_models_apart():
    assert fitting({"patch_embed.proj": (3072, 64)}) == {"CogVideoX-5B"}
    assert fitting({"patch_embed.proj": (3072, 128)}) == {"CogVideoX-5B-I2V", "CogVideoX1.5-5B"}
    assert fitting({"patch_embed.proj": (3072, 256)}) == {"CogVideoX1.5-5B-I2V"}
    assert fitting({**attention(3072, 1), "ofs_embedding.linear_1": (512, 512)}) == {"CogVideoX1.5-5B-I2V"}


def linears(model):
    kinds = (nn.Linear, nn.Conv2d)
    return {path: tuple(module.weight.flatten(1).shape) for path, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("name", [row.name for row in MODELS if row.model_class == COGVIDEOX and row.name != "pocket"])
def test_all_layers_of_a_published_transformer_fit_its_row(name):
    """The rows against diffusers' own class at that configuration, without weights."""
    config = dict(SIGNATURES[name])
    is_15 = config["patch_size_t"] is not None
    more = {"ofs_embed_dim": 512 if is_15 and config["in_channels"] == 32 else None, "use_rotary_positional_embeddings": True}
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel.from_config({**config, **more, "patch_bias": not is_15})
    assert name in fitting(linears(model))
    row = next(row for row in MODELS if row.name == name)
    assert num_layers_of(row) == config["num_layers"]


def test_stable_diffusion_is_told_by_its_widths_and_its_text():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({"cross_attention_dim": 768})
    shapes = {path: shape for path, shape in linears(unet).items() if "attentions" in path}
    assert fitting(shapes, UNET) == {"SD 1.5"}
    assert fitting({"down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k": (640, 2048)}, UNET) == {"SDXL"}
