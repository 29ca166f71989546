"""Configs of published models are recognised; any other CogVideoX speaks for itself."""

import inspect
import json

import pytest

from reelora.catalog import MODELS, facts_for
from reelora.catalog.models import FAMILIES, SIGNATURES
from reelora.errors import ConfigError

ROWS = {facts.name: facts for facts in MODELS}
COGVIDEOX_5B = {"_class_name": "CogVideoXTransformer3DModel", "num_layers": 42, "num_attention_heads": 48}


@pytest.mark.parametrize("model_class", FAMILIES)
def test_values_that_a_config_leaves_out_are_those_of_the_class(model_class):
    import diffusers

    signature = inspect.signature(getattr(diffusers, model_class).__init__).parameters
    assert {name: signature[name].default for name in FAMILIES[model_class].defaults} == dict(FAMILIES[model_class].defaults)


def test_every_row_has_a_signature_and_every_signature_a_row():
    assert set(SIGNATURES) == set(ROWS)


@pytest.mark.parametrize("facts", MODELS, ids=lambda facts: facts.name)
def test_a_config_with_the_signature_of_a_row_is_that_row_also_after_json(facts):
    config = json.loads(json.dumps({"_class_name": facts.model_class, **SIGNATURES[facts.name]}))
    assert facts_for(config) == facts


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "CogVideoXTransformer3DModel"}, "CogVideoX-2B"),
        (COGVIDEOX_5B, "CogVideoX-5B"),
        (COGVIDEOX_5B | {"in_channels": 32}, "CogVideoX-5B-I2V"),
        (COGVIDEOX_5B | {"patch_size_t": 2, "sample_height": 300, "sample_width": 300, "sample_frames": 81}, "CogVideoX1.5-5B"),
        (COGVIDEOX_5B | {"patch_size_t": 2, "in_channels": 32, "ofs_embed_dim": 512}, "CogVideoX1.5-5B-I2V"),
    ],
)
def test_old_configs_that_leave_out_later_values_are_recognised(config, name):
    """The 2B was published before ``patch_size_t`` existed."""
    assert facts_for(config).name == name


def test_a_live_models_config_needs_no_class_name():
    assert facts_for({"max_text_seq_length": 226, "num_layers": 30, "num_attention_heads": 30}).name == "CogVideoX-2B"
    assert facts_for({"cross_attention_dim": 768}).name == "SD 1.5"


def test_an_unknown_cogvideox_speaks_for_itself():
    config = {"_class_name": "CogVideoXTransformer3DModel", "num_layers": 2, "sample_frames": 17, "sample_height": 8}
    facts = facts_for(config | {"sample_width": 12, "max_text_seq_length": 20, "patch_size": 1})
    assert facts.name == "a CogVideoX of 2 blocks and 30 heads"
    assert (facts.default_frames, facts.max_frames, facts.frame_group, facts.fps) == (17, 17, 8, 8)
    assert (facts.default_height, facts.default_width, facts.size_multiple) == (64, 96, 8)
    assert facts.num_text_tokens == 20


def test_an_unknown_15_keeps_the_rules_of_15():
    facts = facts_for({"max_text_seq_length": 224, "num_layers": 2, "sample_frames": 81, "patch_size_t": 2})
    assert (facts.default_frames, facts.max_frames, facts.frame_group, facts.fps, facts.patch_size_t) == (81, 161, 16, 16, 2)


@pytest.mark.parametrize("patch_size_t", [None, 2])
@pytest.mark.parametrize("sample_frames", [1, 5, 8, 9, 13, 17, 49, 81, 85])
def test_whatever_its_length_an_unknown_cogvideox_can_do_its_default(sample_frames, patch_size_t):
    facts = facts_for({"max_text_seq_length": 8, "num_layers": 1, "sample_frames": sample_frames, "patch_size_t": patch_size_t})
    facts.check_video(num_frames=facts.default_frames, height=facts.default_height, width=facts.default_width)
    assert facts.frame_group % facts.temporal_stride == 0
    assert facts.latent_frames(facts.default_frames) == 1 + (facts.default_frames - 1) // 4


def test_the_vae_that_is_there_goes_before_the_row():
    vae = {"scaling_factor": 0.9, "invert_scale_latents": True, "temporal_compression_ratio": 4, "block_out_channels": [8] * 3}
    facts = facts_for(COGVIDEOX_5B, vae)
    assert (facts.scaling_factor, facts.invert_scale_latents, facts.spatial_stride) == (0.9, True, 4)
    assert facts.name == "CogVideoX-5B"
    assert facts_for(COGVIDEOX_5B, {"_class_name": "AutoencoderKLCogVideoX"}) == ROWS["CogVideoX-5B"]


def test_the_channels_of_latents_are_those_that_the_transformer_gives_or_that_the_vae_says():
    config = {"_class_name": "CogVideoXTransformer3DModel", "num_layers": 2, "in_channels": 8, "out_channels": 4}
    assert facts_for(config).needs_image
    assert not facts_for(config, {"latent_channels": 8}).needs_image
    with pytest.raises(ConfigError, match=r"takes 8 channels, its latents have 16: transformer and VAE are not of one model"):
        facts_for(config, {"latent_channels": 16}).check_trainable()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"_class_name": "CogVideoXTransformer2DModel"}, "did you mean 'CogVideoXTransformer3DModel'"),
        ({"_class_name": "WanTransformer"}, "not in the catalog"),
        ({}, "has none of max_text_seq_length, cross_attention_dim"),
    ],
)
def test_a_config_of_another_class_is_refused(config, complaint):
    with pytest.raises(ConfigError, match=complaint):
        facts_for(config)
