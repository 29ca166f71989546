"""What we write means the same to stock diffusers: the trained strength, the same output."""

import json
from typing import Any

import peft
import pytest
import safetensors
import safetensors.torch
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from peft.tuners.lora import LoraLayer
from torch import nn

from reelora.adapters import Adapter, LoraSpec, Pair, read_adapter, write_adapter
from reelora.errors import UnknownScaleError
from reelora.lora import TrainableLinear, attach, collect, detach, using

TOLERANCE = 1e-6  # relative, float32


def trained(model, spec=LoraSpec(rank=8, alpha=4)):  # noqa: B008  (a spec never changes)
    """An adapter as a training run leaves it."""
    attach(model, spec)
    draw = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, TrainableLinear):
            nn.init.normal_(module.lora_b, std=0.1, generator=draw)
    adapter = collect(model, provenance={"base": "0123", "trigger_words": '["star"]'})
    detach(model)
    return adapter


def load_by_pipeline(model, path):
    """Load a file by ``load_lora_weights`` of a stock pipeline around the model; its other parts are not needed for that."""
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    if type(model).__name__.startswith("UNet"):
        parts |= {"unet": model, "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False)}
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts)
    else:
        pipe = CogVideoXPipeline(transformer=model, scheduler=CogVideoXDPMScheduler(), **parts)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    return model


def scales_in(model):
    return {scale for module in model.modules() if isinstance(module, LoraLayer) for scale in module.scaling.values()}


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


SPECS = {
    "half": (LoraSpec(rank=8, alpha=4), {0.5}),
    "gaussian": (LoraSpec(rank=8, alpha=16, init="gaussian"), {2.0}),
    "rslora": (LoraSpec(rank=4, alpha=3, rslora=True), {1.5}),
    "patterns": (LoraSpec(rank=8, alpha=4, rank_pattern={"to_q": 4}, alpha_pattern={"to_k": 1}), {0.5, 1.0, 0.125}),
    "fractional": (LoraSpec(rank=8, alpha=0.3), {0.3 / 8}),
    "regex": (LoraSpec(rank=8, alpha=4, target_modules=r".*to_[qk]"), {0.5}),
}


@pytest.mark.parametrize(("spec", "scales"), SPECS.values(), ids=SPECS.keys())
def test_a_stock_pipeline_loads_our_file_at_the_trained_strength(model, forward, tmp_path, spec, scales):
    adapter = trained(model, spec)
    path = tmp_path / "adapter.safetensors"
    assert write_adapter(adapter, path) == 0.0
    with using(model, [(adapter, 1.0)]):
        expected = forward(model)
    load_by_pipeline(model, path)
    assert scales_in(model) == scales
    assert relative(forward(model), expected) < TOLERANCE


def test_an_adapter_of_mixed_strength_without_a_spec_keeps_every_single_one(transformer, forward, tmp_path):
    whole = trained(transformer)
    pairs = {
        name: Pair(pair.a[: 2 + i], pair.b[:, : 2 + i], 0.1 * (i + 1)) for i, (name, pair) in enumerate(whole.pairs.items())
    }
    adapter = Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test")
    assert write_adapter(adapter, tmp_path / "a.safetensors") < 1e-12
    with using(transformer, [(adapter, 1.0)]):
        expected = forward(transformer)
    assert relative(forward(load_by_pipeline(transformer, tmp_path / "a.safetensors")), expected) < TOLERANCE


def test_a_file_without_metadata_is_double_strength_in_diffusers_and_unknown_to_us(transformer, forward, tmp_path):
    """The trap that CogVideo's own trainer sets: it trains at 64 / 128 and writes no alpha."""
    adapter = trained(transformer)
    path = tmp_path / "trap.safetensors"
    write_adapter(adapter, path)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata={"format": "pt"})
    with using(transformer, [(adapter, 2.0)]):
        doubled = forward(transformer)
    ours = read_adapter(path)
    assert {pair.scale for pair in ours.pairs.values()} == {None}
    with pytest.raises(UnknownScaleError), using(transformer, [(ours, 1.0)]):
        pass
    with pytest.raises(UnknownScaleError):
        write_adapter(ours, tmp_path / "out.safetensors")
    load_by_pipeline(transformer, path)
    assert scales_in(transformer) == {1.0}
    assert relative(forward(transformer), doubled) < TOLERANCE


def test_what_diffusers_saves_with_metadata_is_read_at_its_strength(transformer, forward, tmp_path):
    transformer.add_adapter(peft.LoraConfig(r=8, lora_alpha=4, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    expected = forward(transformer)
    CogVideoXPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=dict(peft.get_peft_model_state_dict(transformer, adapter_name="default")),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    transformer.unload_lora()
    adapter = read_adapter(tmp_path)
    assert adapter.spec is not None
    assert (adapter.spec.rank, adapter.spec.alpha, set(adapter.spec.target_modules)) == (8, 4, {"to_q", "to_out.0"})
    assert "lora_adapter_metadata" in adapter.scale_source
    with using(transformer, [(adapter, 1.0)]):
        assert relative(forward(transformer), expected) < TOLERANCE


def test_the_header_makes_the_same_peft_config_again(transformer, tmp_path):
    spec = LoraSpec(rank=8, alpha=4, target_modules=("to_q", "to_out.0"), dropout=0.1, init="gaussian")
    write_adapter(trained(transformer, spec), tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        fields = json.loads(file.metadata()["lora_adapter_metadata"])
    config = peft.LoraConfig(**{name.removeprefix("transformer."): value for name, value in fields.items()})
    assert (config.r, config.lora_alpha, config.lora_dropout, config.init_lora_weights) == (8, 4, 0.1, "gaussian")
    assert config.target_modules == {"to_q", "to_out.0"}
    assert attach(transformer, config).spec == LoraSpec.from_peft(config)
