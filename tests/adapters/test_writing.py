"""Every layout that can be written: read again as the same adapter, and loaded by the programs that own the layout."""

import json
from typing import Any

import peft
import pytest
import torch
from corpus import CASES, NAME, PATH, factors
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_models import build_pipeline, build_transformer

from reelora.adapters import (
    PROOFS,
    WRITTEN,
    Adapter,
    LoraSpec,
    Magnitude,
    Pair,
    content_hash,
    largest_difference,
    read_adapter,
    write_adapter,
    write_with_report,
)
from reelora.errors import AdapterError, ConfigError, UnknownScaleError
from reelora.lora import attach, collect

SINGLE = [layout for layout in WRITTEN if layout not in ("peft", "sat")]
LEAVES = ("to_q", "to_k", "to_v", "to_out.0")


def target(folder, layout):
    return folder / {"peft": "adapter", "sat": "adapter.pt"}.get(layout, "adapter.safetensors")


def make_adapter(scales=(0.5, 0.3), ranks=(4, 2), dtype=torch.float32, leaves=LEAVES[:2], layers=1, **more):
    torch.manual_seed(1)
    names = [f"transformer.transformer_blocks.{layer}.attn1.{leaf}" for layer in range(layers) for leaf in leaves]
    pairs = {
        name: Pair(
            torch.randn(ranks[i % len(ranks)], 16).to(dtype),
            torch.randn(16, ranks[i % len(ranks)]).to(dtype),
            scales[i % len(scales)],
        )
        for i, name in enumerate(names)
    }
    return Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test", **more)


@pytest.mark.parametrize("layout", WRITTEN)
def test_every_layout_gives_back_what_it_was_given(layout, tmp_path):
    """A and B bit for bit where the layout stores alpha; SAT scales B in float32, one rounding."""
    adapter = make_adapter(provenance={"trigger_words": "twinkle"})
    proof = write_adapter(adapter, target(tmp_path, layout), layout)
    again = read_adapter(target(tmp_path, layout))
    assert proof <= PROOFS[torch.float32]
    assert again.layout == layout
    kept = {name: pair for name, pair in again.pairs.items() if name in adapter.pairs}
    assert proof == pytest.approx(largest_difference(adapter, make_like(again, kept)), abs=1e-9)
    assert again.provenance == {"trigger_words": "twinkle"}
    if layout != "sat":
        assert proof == 0.0
        assert all(torch.equal(kept[name].a, pair.a) and kept[name].scale == pair.scale for name, pair in adapter.pairs.items())


def make_like(adapter, pairs):
    return Adapter(pairs=pairs, spec=None, layout=adapter.layout, scale_source="a test")


@pytest.mark.parametrize("first", [layout for layout in WRITTEN if layout != "sat"])
@pytest.mark.parametrize("second", [layout for layout in WRITTEN if layout != "sat"])
def test_any_layout_to_any_other_and_back_is_the_identity(first, second, tmp_path):
    adapter = make_adapter(scales=(0.5, 1 / 3))
    for number, layout in enumerate((first, second, first)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_adapter(adapter, target(folder, layout), layout)
        adapter = read_adapter(target(folder, layout))
    assert largest_difference(make_adapter(scales=(0.5, 1 / 3)), adapter) == 0.0


@pytest.mark.parametrize("other", [layout for layout in WRITTEN if layout != "sat"])
def test_a_scale_that_is_a_power_of_two_goes_through_sat_and_back_unchanged(other, tmp_path):
    """SAT's layout has every projection of every layer, one rank, and the scale in B: a power of two rounds nothing."""
    wanted = make_adapter(
        scales=(0.5,), ranks=(4,), leaves=LEAVES, layers=2, provenance={"trigger_words": "twinkle", "a.b": "c"}
    )
    adapter = wanted
    for number, layout in enumerate((other, "sat", other, "sat")):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert write_adapter(adapter, target(folder, layout), layout) == 0.0
        adapter = read_adapter(target(folder, layout))
        assert adapter.provenance == wanted.provenance
    assert largest_difference(wanted, adapter) == 0.0
    assert adapter.scale_source == "the header's lora_alpha"


def dora(made_by, axis):
    a, b = factors()
    names = torch.rand(len(b) if axis == "out" else a.shape[1])
    return {NAME: Pair(a, b, 0.5, magnitude=Magnitude(names, axis, made_by))}


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.parametrize(
    ("made_by", "axis", "able"),
    [
        ("PEFT", "out", ["diffusers", "peft"]),
        ("LyCORIS", "out", ["kohya"]),
        ("LyCORIS", "in", ["kohya", "comfyui"]),
    ],
)
def test_a_dora_is_written_only_where_its_norms_mean_the_same(layout, made_by, axis, able, tmp_path):
    adapter = Adapter(pairs=dora(made_by, axis), spec=None, layout="memory", scale_source="a test")
    if layout in able:
        write_adapter(adapter, target(tmp_path, layout), layout)
        again = read_adapter(target(tmp_path, layout))
        assert again.pairs[NAME].kind == adapter.pairs[NAME].kind
        assert content_hash(again) == content_hash(adapter)
    else:
        with pytest.raises(AdapterError) as caught:
            write_adapter(adapter, target(tmp_path, layout), layout)
        assert NAME in str(caught.value)
        assert layout == "sat" or str(caught.value).endswith(f"Layouts that can hold it: {', '.join(able)}.")
        assert not list(tmp_path.iterdir())


def test_stock_peft_makes_the_same_of_a_dora_that_we_read_and_wrote(tmp_path):
    torch.manual_seed(0)
    model = build_transformer()
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["to_q"], use_dora=True, init_lora_weights=False)
    theirs: Any = peft.get_peft_model(build_like(model), config)
    for name, parameter in theirs.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + torch.rand_like(parameter)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = read_adapter(tmp_path / "theirs")
    write_adapter(adapter, tmp_path / "ours", "peft")
    same(forward(peft.PeftModel.from_pretrained(build_like(model), str(tmp_path / "ours"))), forward(theirs))
    write_adapter(adapter, tmp_path / "adapter.safetensors")
    pipe = build_pipeline()
    pipe.transformer.load_state_dict(model.state_dict())
    pipe.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    same(forward(pipe.transformer), forward(theirs))


def test_a_dora_beside_a_plain_lora_is_no_adapter_of_pefts(tmp_path):
    pairs = {**dora("PEFT", "out"), NAME.replace("to_out.0", "to_q"): Pair(*factors(), 0.5)}
    mixed = Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test")
    for layout in ("diffusers", "peft"):
        with pytest.raises(AdapterError, match=r"1 of 2 pairs of the transformer are no DoRA"):
            write_adapter(mixed, target(tmp_path, layout), layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["text_encoder.text_model.encoder.layers.0.mlp.fc1", "unet.conv_in"])
def test_comfyui_gets_nothing_that_it_would_not_find(name, tmp_path):
    pairs = {name: Pair(*factors(), 0.5)}
    adapter = Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test")
    with pytest.raises(AdapterError, match=rf"no names for 1 modules, first {name}. Layouts that can hold it: .*kohya"):
        write_adapter(adapter, target(tmp_path, "comfyui"), "comfyui")


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "peft", "sat"])
def test_values_too_large_for_the_dtype_of_the_file_are_refused_by_name(layout, tmp_path):
    adapter = make_adapter(scales=(0.5,), ranks=(4,), leaves=LEAVES)
    last = list(adapter.pairs)[-1]
    large = Pair(adapter.pairs[last].a, adapter.pairs[last].b * 1e6, 0.5)
    adapter = Adapter(pairs={**adapter.pairs, last: large}, spec=None, layout="memory", scale_source="a test")
    with pytest.raises(AdapterError, match=r"1 tensors hold values too large for torch.float16: .*att.*bf16"):
        write_adapter(adapter, target(tmp_path, layout), layout, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_dtype_without_a_proof_is_refused(dtype, tmp_path):
    with pytest.raises(ConfigError, match=f"dtype is {dtype}"):
        write_adapter(make_adapter(), target(tmp_path, "kohya"), "kohya", dtype=dtype)


def test_a_lokr_is_written_as_the_lora_that_it_is_and_the_report_says_so(tmp_path):
    adapter = read_adapter(next(case for case in CASES if case.name == "LoKr").make(tmp_path))
    (tmp_path / "out").mkdir()
    report = write_with_report(adapter, target(tmp_path / "out", "diffusers"))
    assert "1 modules of LoHa or LoKr are multiplied out into LoRAs" in " ".join(report.notes)
    again = read_adapter(target(tmp_path / "out", "diffusers"))
    assert (again.pairs[NAME].kind, again.pairs[NAME].rank) == ("LoRA", adapter.pairs[NAME].rank)
    assert torch.equal(again.delta(NAME), adapter.delta(NAME))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4), st.sampled_from(["diffusers", "kohya"]))
def test_any_scale_comes_back_within_one_rounding(tmp_path_factory, scales, layout):
    folder = tmp_path_factory.mktemp("scales")
    adapter = make_adapter(scales=scales, ranks=(3, 1, 2), leaves=LEAVES)
    write_adapter(adapter, target(folder, layout), layout)
    again = read_adapter(target(folder, layout))
    assert all(again.pairs[name].scale == pytest.approx(pair.scale, rel=1e-11) for name, pair in adapter.pairs.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lower_precision_is_proven_within_its_own_rounding(tmp_path, dtype):
    proof = write_adapter(make_adapter(), target(tmp_path, "diffusers"), dtype=dtype)
    assert 0 < proof <= PROOFS[dtype]
    assert read_adapter(target(tmp_path, "diffusers")).pairs[next(iter(make_adapter().pairs))].a.dtype == dtype


def test_the_proof_is_stored_in_the_file(tmp_path):
    write_adapter(make_adapter(), target(tmp_path, "kohya"), "kohya", dtype=torch.bfloat16)
    with safe_open(target(tmp_path, "kohya"), "pt") as file:
        metadata = file.metadata()
    assert 0 < float(metadata["reelora.proof"]) <= PROOFS[torch.bfloat16]
    assert metadata["ss_network_dim"] == "Dynamic"
    assert "proof" not in read_adapter(target(tmp_path, "kohya")).provenance


@pytest.mark.parametrize(("layers", "tensors"), [(1, 8), (30, 240), (42, 336)])
def test_sat_gets_eight_tensors_a_layer_whatever_the_depth(layers, tensors, tmp_path):
    adapter = make_adapter(ranks=(2,), scales=(0.5,), leaves=LEAVES, layers=layers)
    report = write_with_report(adapter, tmp_path / "adapter.pt", "sat")
    module = torch.load(tmp_path / "adapter.pt", weights_only=True)["module"]
    assert len(module) == tensors
    assert any("folded into B" in note for note in report.notes)


def test_sat_computes_what_the_adapter_means_with_its_default_alpha_of_one(tmp_path):
    adapter = make_adapter(ranks=(4, 2), leaves=LEAVES[1:3], layers=2)
    report = write_with_report(adapter, tmp_path / "adapter.pt", "sat")
    assert "4 projections that the adapter lacks are zeros" in " ".join(report.notes)
    assert "2 pairs of lower rank are padded with zeros to 4" in " ".join(report.notes)
    again = read_adapter(tmp_path / "adapter.pt", producer="sat")
    for name, pair in again.pairs.items():
        expected = adapter.delta(name) if name in adapter.pairs else torch.zeros(16, 16)
        torch.testing.assert_close(pair.b @ pair.a / 4, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        ("sat", "transformer.proj_out", "plain LoRAs of to_q"),
        ("sat", "unet.conv_in", "CogVideoX transformer only"),
        (
            "kohya",
            "transformer.my_blocks.0.to_q",
            "first transformer.my_blocks.0.to_q. Layouts that can hold it: diffusers, peft, comfyui.",
        ),
        ("fun", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "no names for 1 modules"),
    ],
)
def test_modules_that_a_layout_cannot_spell_are_refused_and_nothing_is_left(layout, name, message, tmp_path):
    adapter = make_adapter()
    odd = Adapter(
        pairs={**adapter.pairs, name: next(iter(adapter.pairs.values()))}, spec=None, layout="memory", scale_source=""
    )
    with pytest.raises(AdapterError, match=message):
        write_adapter(odd, target(tmp_path, layout), layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("a.pt", "kohya", "has to end in .safetensors"),
        ("a.safetensors", "sat", "has to end in .pt"),
        ("a.safetensors", "kohia", "did you mean 'kohya'"),
        ("a.safetensors", "cloneofsimo", "No layout that can be written"),
        ("", "peft", "a folder of its own"),
    ],
)
def test_a_path_or_layout_that_cannot_be_is_refused(name, layout, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        write_adapter(make_adapter(), tmp_path / name, layout)


def test_an_unknown_scale_is_never_written(tmp_path):
    a, b = factors()
    unknown = Adapter(pairs={NAME: Pair(a, b, None)}, spec=None, layout="memory", scale_source="nothing")
    for layout in WRITTEN:
        with pytest.raises(UnknownScaleError):
            write_adapter(unknown, target(tmp_path, layout), layout)
    assert not list(tmp_path.iterdir())


def trained(model, **spec):
    """An adapter of a live model whose B is not zero any more."""
    summary = attach(model, LoraSpec(rank=4, **spec), seed=0)
    adapter = collect(model)
    pairs = {name: Pair(pair.a, torch.randn_like(pair.b), pair.scale) for name, pair in adapter.pairs.items()}
    assert summary is not None
    return Adapter(pairs=pairs, spec=adapter.spec, layout="memory", scale_source="a test")


def forward(model):
    torch.manual_seed(3)
    x, text = torch.randn(1, 3, 4, 4, 4), torch.randn(1, 8, 16)
    rotary = (torch.ones(12, 16), torch.zeros(12, 16))
    with torch.no_grad():
        return model(x, text, torch.tensor([5]), image_rotary_emb=rotary, return_dict=False)[0]


def dense(model, adapter):
    """The model with the adapter's updates added to its weights."""
    for name in adapter.pairs:
        model.get_submodule(name.removeprefix("transformer.")).weight.data += adapter.delta(name)
    return model


def same(actual, expected):
    """Float32 outputs of order 1, the same products in another order."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", [{"alpha": 2}, {"alpha": 2, "rslora": True}, {"alpha": 4, "alpha_pattern": {"to_k": 1}}])
def test_stock_diffusers_loads_our_file_at_our_strength(spec, tmp_path):
    torch.manual_seed(0)
    pipe = build_pipeline()
    adapter = trained(build_transformer(), **spec)
    expected = forward(dense(build_like(pipe.transformer), adapter))
    write_adapter(adapter, tmp_path / "adapter.safetensors")
    pipe.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    same(forward(pipe.transformer), expected)


def build_like(model):
    twin = build_transformer()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("spec", [{"alpha": 2}, {"alpha": 2, "rslora": True}, {"alpha": 4, "rank_pattern": {"to_k": 2}}])
def test_stock_peft_loads_our_folder_at_our_strength(spec, tmp_path):
    torch.manual_seed(0)
    model = build_transformer()
    adapter = trained(build_transformer(), **spec)
    expected = forward(dense(build_like(model), adapter))
    write_adapter(adapter, tmp_path / "adapter", "peft")
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    same(forward(loaded), expected)


def test_stock_diffusers_reads_kohya_alphas_of_a_unet_as_we_wrote_them(tmp_path):
    """The Stable Diffusion loader is the only one in diffusers that knows kohya's names."""
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    a, b = factors()
    adapter = Adapter(pairs={f"{block}.to_q": Pair(a, b, 0.3)}, spec=None, layout="memory", scale_source="a test")
    write_adapter(adapter, tmp_path / "adapter.safetensors", "kohya")
    loader: Any = StableDiffusionLoraLoaderMixin
    state, alphas = loader.lora_state_dict(str(tmp_path), weight_name="adapter.safetensors")
    theirs = f"{block}.processor.to_q_lora"
    assert torch.equal(state[f"{theirs}.down.weight"], a)
    assert torch.equal(state[f"{theirs}.up.weight"], b)
    assert alphas == {f"{theirs}.down.weight.alpha": pytest.approx(1.2)}


def test_the_pipeline_class_says_which_keys_stock_diffusers_understands(tmp_path):
    write_adapter(make_adapter(), tmp_path / "adapter.safetensors")
    pipeline: Any = CogVideoXPipeline
    state = pipeline.lora_state_dict(str(tmp_path), weight_name="adapter.safetensors")
    assert all(key.startswith("transformer.") and key.endswith(".weight") for key in state)


def test_a_peft_folder_says_what_peft_needs_and_appears_whole(tmp_path):
    write_adapter(make_adapter(ranks=(4,), scales=(0.5,)), tmp_path / "adapter", "peft")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 2, "LORA")
    assert PATH.partition(".")[0] in str(config["target_modules"])
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
