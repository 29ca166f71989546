"""Tiny real models, and inputs for them."""

import pytest
import torch


def tiny_transformer():
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=8,
    ).eval()


def tiny_unet():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def run(model, *, dtype=torch.float32):
    """The model's output for inputs drawn from a fixed seed."""
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(2, 8, 16, generator=draw).to(dtype)
    video = torch.randn(2, 3, 4, 8, 8, generator=draw).to(dtype)
    steps = torch.tensor([5, 900])
    if type(model).__name__.startswith("UNet"):
        return model(video[:, 0], steps, text).sample
    return model(hidden_states=video, encoder_hidden_states=text, timestep=steps).sample


@pytest.fixture
def transformer():
    return tiny_transformer()


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture(params=[tiny_transformer, tiny_unet], ids=["transformer", "unet"])
def model(request):
    return request.param()


@pytest.fixture
def forward():
    return run
