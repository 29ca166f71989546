"""Sizes follow from configs and headers alone, and equal those of the published files."""

import shutil

import pytest
import torch

from reelora.components import load_components
from reelora.errors import ConfigError
from reelora.plan import catalogued, sizes_of
from reelora.pocket import MODEL

PUBLISHED = {
    "zai-org/CogVideoX-2b": {"text_encoder": 4762.31, "transformer": 1693.78, "vae": 215.58},
    "zai-org/CogVideoX-5b": {"text_encoder": 4762.31, "transformer": 5570.28, "vae": 215.58},
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"text_encoder": 123.06, "unet": 859.52, "vae": 83.65},
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "text_encoder": 123.06,
        "text_encoder_2": 694.66,
        "unet": 2567.46,
        "vae": 83.65,
    },
}
"""Millions of parameters, as the model cards have them and as diffusers counts them in the published files."""


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_the_catalog_knows_the_size_of_every_part(hub_id, published):
    sizes = published(hub_id)
    counted = {role: round(size.num_parameters / 1e6, 2) for role, size in sizes.roles.items()}
    assert counted == PUBLISHED[hub_id]
    assert "catalog" in sizes.notes[0]


def test_the_pocket_model_is_counted_from_its_headers(pocket):
    parts = load_components(MODEL)
    assert set(pocket.roles) == {"text_encoder", "transformer", "vae"}
    for role, size in pocket.roles.items():
        network = getattr(parts, role)
        assert size.num_parameters == sum(parameter.numel() for parameter in network.parameters())
        assert size.stored_bytes == sum(parameter.nbytes for parameter in network.parameters())
        assert size.dtype is network.dtype
        assert size.bytes_in(torch.float32) == 2 * size.bytes_in(None)
    assert pocket.notes == ()


def test_weights_that_are_not_here_are_counted_by_the_config_with_a_note(tmp_path, pocket):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").unlink(missing_ok=True)
    sizes = sizes_of(load_components(folder, roles=[]))
    assert sizes.roles["vae"].bytes_in(None) == pocket.roles["vae"].bytes_in(None)
    assert sizes.notes == ("vae: size counted from its config, for its weights are not here",)


def test_a_text_encoder_that_is_not_here_is_left_out_with_a_note(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder"))
    sizes = sizes_of(load_components(folder, roles=[]))
    assert sizes.text_encoders == ()
    assert "left out" in sizes.notes[0]


def test_the_catalog_does_not_know_every_hub_id_and_no_mistyped_name():
    assert catalogued("somebody/something") is None
    with pytest.raises(ConfigError, match="did you mean 'cogvideox-5b'"):
        catalogued("CogVideX-5B")
