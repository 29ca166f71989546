"""Which published models an adapter can be for, told from shapes alone."""

from typing import Any

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from reelora.catalog import MODELS, SHAPE_FINGERPRINTS, fitting_models, num_layers_of
from reelora.catalog.models import SIGNATURES
from reelora.tensorio import shape_fingerprint

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


STRANGERS = {
    "Wan": {"blocks.0.attn1.to_q": (5120, 5120), "blocks.0.ffn.net.0.proj": (13824, 5120)},
    "Flux": {"transformer_blocks.0.attn.to_q": (3072, 3072), "transformer_blocks.0.ff.net.2": (3072, 12288)},
    "Hunyuan": {"single_transformer_blocks.0.attn.to_q": (3072, 3072)},
    "nothing": {},
}


@pytest.mark.parametrize("shapes", STRANGERS.values(), ids=STRANGERS)
def test_a_family_that_the_catalog_has_not_fits_none_of_its_models(shapes):
    assert fitting(shapes) == fitting(shapes, UNET) == set()


def test_one_path_that_a_model_has_not_is_enough_not_to_fit():
    assert fitting({**attention(1920, 30), "transformer_blocks.0.attn2.to_q": (1920, 1920)}) == set()
    assert fitting({"foo.to_q": (320, 320)}, UNET) == set()


def test_layers_of_which_no_shape_is_told_do_not_tell_a_model_but_do_not_rule_it_out_either():
    convolution = {"down_blocks.0.resnets.0.conv1": (320, 2880)}
    assert fitting(convolution, UNET) == set()
    text = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 768)}
    assert fitting({**convolution, **text}, UNET) == {"SD 1.5"}


def linears(model):
    kinds = (nn.Linear, nn.Conv2d)
    return {path: tuple(module.weight.flatten(1).shape) for path, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("name", [row.name for row in MODELS if row.model_class == COGVIDEOX and row.name != "pocket"])
def test_all_layers_of_a_published_transformer_fit_its_row(name):
    """The rows against diffusers' own class at that configuration, without weights."""
    assert name in fitting(linears(published(name)))
    row = next(row for row in MODELS if row.name == name)
    assert num_layers_of(row) == SIGNATURES[name]["num_layers"]


@pytest.mark.parametrize("name", SHAPE_FINGERPRINTS)
def test_the_shapes_of_a_whole_transformer_tell_those_that_attention_cannot(name):
    shapes = {key: tuple(tensor.shape) for key, tensor in published(name).state_dict().items()}
    assert SHAPE_FINGERPRINTS[name] == shape_fingerprint(shapes)
    assert name in FIVE


def published(name) -> Any:
    """The transformer of a row, as diffusers builds it from the published config."""
    config = dict(SIGNATURES[name])
    is_15, has_image = config["patch_size_t"] is not None, config["in_channels"] == 32
    more = {
        "ofs_embed_dim": 512 if is_15 and has_image else None,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": has_image and not is_15,
        "patch_bias": not is_15,
    }
    with torch.device("meta"):
        return CogVideoXTransformer3DModel.from_config({**config, **more})


def test_stable_diffusion_is_told_by_its_widths_and_its_text():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({"cross_attention_dim": 768})
    assert fitting(linears(unet), UNET) == {"SD 1.5"}
    assert fitting({"down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k": (640, 2048)}, UNET) == {"SDXL"}
