"""SAT LoRAs against SAT itself: the model with our adapter computes what the original code computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from safetensors.torch import load_file

from reelora.adapters import WRITTEN, read_adapter, write_adapter
from reelora.errors import UnknownScaleError
from reelora.lora import using

GOLDEN = Path(__file__).parents[1] / "golden" / "sat"
CASES = ("t2v_2b_lora", "t2v_5b_lora_a8")
TOLERANCE = 2e-6
"""Outputs of order 3 in float32; SAT and diffusers sum in another order."""


def build_base(case: str) -> Any:
    """The base as diffusers has it, with the epsilon that SAT has in its final norm."""
    config = json.loads((GOLDEN / case / "base" / "config.json").read_text())
    model: Any = CogVideoXTransformer3DModel.from_config(config)
    model.load_state_dict(load_file(GOLDEN / case / "base" / "diffusion_pytorch_model.safetensors"))
    model.norm_out.norm.eps = 1e-6
    return model.eval()


def largest_error(case: str, adapter, strength: float = 1.0) -> float:
    """Of our output from SAT's."""
    model, reference = build_base(case), load_file(GOLDEN / case / "reference.safetensors")
    # The last bit of exp() differs between processors, and a timestep near 1000 makes it 1e-5: take SAT's own embedding.
    model.time_embedding.register_forward_hook(lambda *_: reference["a.time_emb"])
    num_tokens = reference["a.latent"].shape[1] * reference["a.latent"].shape[3] * reference["a.latent"].shape[4] // 4
    rotary = None
    if "rope.freqs_cos" in reference:
        rotary = (reference["rope.freqs_cos"][:num_tokens], reference["rope.freqs_sin"][:num_tokens])
    with torch.no_grad(), using(model, [(adapter, strength)]):
        output = model(
            reference["a.latent"],
            reference["a.context"],
            reference["a.timesteps"],
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
    return float((output - reference["a.output"]).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_a_sat_lora_with_its_yaml_gives_sats_output(case):
    adapter = read_adapter(GOLDEN / case / "transformer", sat_config=GOLDEN / case / "model.yaml")
    assert largest_error(case, adapter) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_a_bare_sat_lora_is_not_used(case):
    with pytest.raises(UnknownScaleError):
        largest_error(case, read_adapter(GOLDEN / case / "transformer"))


@pytest.mark.parametrize(("case", "alpha"), [("t2v_2b_lora", 1), ("t2v_5b_lora_a8", 8)])
def test_what_the_original_exporter_made_gives_sats_output_at_sats_alpha(case, alpha):
    assert largest_error(case, read_adapter(GOLDEN / case / "exported_lora", alpha=alpha)) < TOLERANCE


def test_the_scale_that_peers_take_is_far_off():
    """The original exporter stores no alpha, so that other loaders run the file at scale 1."""
    wrong = read_adapter(GOLDEN / "t2v_2b_lora" / "exported_lora", alpha=4)
    assert largest_error("t2v_2b_lora", wrong) > 0.1


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.parametrize("case", CASES)
def test_in_every_layout_it_still_gives_sats_output(case, layout, tmp_path):
    adapter = read_adapter(GOLDEN / case / "transformer", sat_config=GOLDEN / case / "model.yaml")
    path = tmp_path / {"peft": "adapter", "sat": "adapter.pt"}.get(layout, "adapter.safetensors")
    write_adapter(adapter, path, layout)
    again = read_adapter(path, producer="sat" if layout == "sat" else None)
    assert largest_error(case, again) < TOLERANCE
