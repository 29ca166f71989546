"""Names: every dialect is read by exactly one grammar, and what is written is read again as the same."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build_text_encoder, build_transformer
from torch import nn

from reelora.layouts import LAYOUTS, ROLES, detect
from reelora.layouts.paths import flatten, unflatten

BY_NAME = {layout.name: layout for layout in LAYOUTS}
WRITTEN = [layout for layout in LAYOUTS if layout.is_written]
GOLDEN = Path(__file__).parents[1] / "golden"

LEAVES = ("to_q", "to_k", "to_v", "to_out.0")
ATTENTION = st.builds("transformer.transformer_blocks.{}.attn1.{}".format, st.integers(0, 500), st.sampled_from(LEAVES))


SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def layers(model: nn.Module) -> Iterator[str]:
    return (path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))


def models() -> Iterator[Any]:
    yield build_transformer()
    yield build_transformer("1.5", ofs_embed_dim=8)
    yield build_text_encoder()
    with torch.device("meta"):
        yield UNet2DConditionModel()
        yield UNet2DConditionModel.from_config(SDXL)


@pytest.mark.parametrize("layout", [row for row in LAYOUTS if row.name != "cloneofsimo-list"], ids=lambda row: row.name)
def test_the_example_of_a_row_is_read_as_that_row(layout):
    reading = detect([layout.example], {"unet": '["CrossAttention"]'})
    assert (reading.layout, reading.problems) == (layout, ())
    assert next(iter(reading.modules)).endswith("attn1.to_q")


def test_every_layer_of_every_model_has_a_name_without_dots_and_back():
    lost = {type(model).__name__: [path for path in layers(model) if flatten(path) is None] for model in models()}
    assert all(not paths for paths in lost.values()), lost


def test_dots_are_never_guessed():
    assert unflatten("transformer_blocks_0_attn1_to_out_0") == "transformer_blocks.0.attn1.to_out.0"
    assert unflatten("transformer_blocks_0_attn1_to_out") is None
    assert unflatten("my_blocks_0_to_q") is None
    assert flatten("my_blocks.0.to_q") is None


@pytest.mark.parametrize("layout", WRITTEN, ids=lambda row: row.name)
@settings(deadline=None)
@given(module=ATTENTION)
def test_every_written_name_is_read_as_the_same_module_by_the_same_layout_alone(layout, module):
    keys = {layout.grammar.spell(module, slot): slot for slot in ("A", "B")}
    reading = detect([key for key in keys if key], {})
    assert (reading.layout, reading.problems) == (layout, ())
    assert reading.modules == {module: {slot: key for key, slot in keys.items()}}
    others = [row.name for row in LAYOUTS if row is not layout and all(row.grammar.parse(key or "") for key in keys)]
    # fastvideo has diffusers' and bare names too, and is told from them by its rank tensors.
    assert set(others) <= {"fastvideo"}


@pytest.mark.parametrize(
    ("spelled", "path"),
    [
        ("input_blocks_4_1_transformer_blocks_0_attn1_to_q", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        (
            "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
        ),
        ("middle_block_1_transformer_blocks_3_attn2_to_v", "mid_block.attentions.0.transformer_blocks.3.attn2.to_v"),
        ("output_blocks_5_1_proj_in", "up_blocks.1.attentions.2.proj_in"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("output_blocks_0_0_skip_connection", "up_blocks.0.resnets.0.conv_shortcut"),
        ("middle_block_2_emb_layers_1", "mid_block.resnets.1.time_emb_proj"),
    ],
)
def test_the_original_sdxl_code_names_the_same_modules_otherwise(spelled, path):
    reading = detect([f"lora_unet_{spelled}.lora_down.weight"], {})
    assert list(reading.modules) == [f"unet.{path}"]


@pytest.mark.parametrize(
    ("spelled", "path"),
    [
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
        ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("time_embed.0", "time_embedding.linear_1"),
        ("out.2", "conv_out"),
    ],
)
def test_comfyuis_names_of_a_unet_are_those_of_the_original_code_with_dots(spelled, path):
    known = "diffusion_model.input_blocks.1.1.proj_in.lora_down.weight"
    reading = detect([known, f"diffusion_model.{spelled}.lora_down.weight"], {})
    assert (reading.layout, reading.problems) == (BY_NAME["comfyui"], ())
    assert list(reading.modules) == ["unet.down_blocks.0.attentions.0.proj_in", f"unet.{path}"]


@pytest.mark.parametrize(
    "spelled",
    [
        "input_blocks.99.1.proj_in",
        "input_blocks.4.1.no_such_layer",
        "input_blocks.4.1.transformer.blocks.0.attn1.to.q",
        "middle_block",
    ],
)
def test_a_name_that_the_original_code_has_not_is_a_stranger_and_no_path_of_ours(spelled):
    reading = detect([f"diffusion_model.{spelled}.lora_down.weight"], {})
    assert (reading.modules, len(reading.problems)) == ({}, 1)


def test_what_comfyui_would_not_find_is_not_spelled_for_it():
    spell = BY_NAME["comfyui"].grammar.spell
    assert spell("transformer.proj_out", "A")
    assert spell("unet.down_blocks.0.attentions.0.proj_in", "A") is None
    assert spell("text_encoder.text_model.encoder.layers.0.mlp.fc1", "A") is None


@pytest.mark.parametrize(
    ("prefix", "role"), [("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2")]
)
def test_onetrainers_transformer_and_text_encoders_are_one_file(prefix, role):
    keys = [
        "lora_transformer_transformer_blocks_0_attn1_to_q.lora_down.weight",
        f"{prefix}text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
    ]
    reading = detect(keys, {})
    assert (reading.layout, reading.problems) == (BY_NAME["onetrainer"], ())
    assert {name.partition(".")[0] for name in reading.modules} == {"transformer", role}


@pytest.mark.parametrize(
    ("prefix", "role"), [("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2")]
)
def test_kohya_numbers_text_encoders(prefix, role):
    reading = detect([f"{prefix}text_model_encoder_layers_11_self_attn_q_proj.lora_up.weight"], {})
    assert list(reading.modules) == [f"{role}.text_model.encoder.layers.11.self_attn.q_proj"]
    assert role in ROLES


def test_the_whole_file_tells_a_unet_from_a_transformer():
    shared = "lora_unet_time_embedding_linear_1.lora_down.weight"
    assert list(detect([shared], {}).modules) == ["transformer.time_embedding.linear_1"]
    assert "unet.time_embedding.linear_1" in detect([shared, "lora_unet_conv_in.lora_down.weight"], {}).modules


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (["transformer.a.lora_A.weight", "stray"], "1 tensors have names that this layout has not: 'stray'"),
        (["a.lora_A.one.weight", "a.lora_B.two.weight"], r"mixes 2 adapter slots \(one, two\)"),
        (["lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.diff"], "no LoRA but a full difference"),
        (["lora_unet_conv_in.oft_blocks"], "OFT"),
        (["lora_unet_input_blocks_0_0.alpha", "lora_unet_conv_in.alpha"], "twice under two spellings"),
        (["unet:0:up", "unet:0:down"], "have names that this layout has not"),
        (["transformer_blocks.0.attn1.to_q.weight"], "have names that no known layout has"),
        (["transformer.a.lora_A.weight", "\x1b[2J"], re.escape(r"'\x1b[2J'")),
        (["transformer.a.lora_A.weight", "x" * 1_000_000], r"'x{100,130} \.\.\. \(1,000,002 characters\)"),
        (["a.lora_A.\x1b.weight", "a.lora_B.\x1b.weight"], "have names that no known layout has"),
        (["unet:0:up", "<\x1b>"], "have names that this layout has not"),
        ([], ""),
    ],
)
def test_what_no_grammar_explains_is_a_problem(keys, problem):
    problems = detect(keys, {}).problems
    assert re.search(problem, "\n".join(problems))
    assert bool(problems) == bool(problem)


def test_a_file_of_another_class_list_is_another_walk_and_unknown_classes_are_strangers():
    keys = ["unet:4:up", "unet:4:down"]
    with_geglu = detect(keys, {"unet": '["CrossAttention", "GEGLU"]'})
    without = detect(keys, {"unet": '["CrossAttention"]'})
    assert list(with_geglu.modules) == ["unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"]
    assert list(without.modules) == ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"]
    for classes in ('["ResnetBlock2D"]', "[1]", "{", '"CrossAttention"'):
        assert detect(keys, {"unet": classes}).problems


def test_the_walk_gives_every_module_of_a_published_file_the_shape_it_has_in_stable_diffusion():
    """Golden: (out, in) of each index of lora_disney.safetensors (cloneofsimo/lora, Apache-2.0), read from its header."""
    golden = json.loads((GOLDEN / "cloneofsimo_shapes.json").read_text())
    names = [
        f"{role}:{index}:{side}" for role, shapes in golden.items() for index in range(len(shapes)) for side in ("up", "down")
    ]
    metadata = {"unet": '["GEGLU", "CrossAttention", "Attention"]', "text_encoder": '["CLIPAttention"]'}
    reading = detect(names, metadata)
    assert not reading.problems
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(cross_attention_dim=768)
    for module, slots in reading.modules.items():
        role, index, _ = slots["B"].split(":")
        shape = tuple(unet.get_submodule(module.removeprefix("unet.")).weight.shape) if role == "unet" else (768, 768)
        assert tuple(golden[role][int(index)]) == shape, module
    assert len(reading.modules) == 192


@pytest.mark.parametrize(("count", "modules"), [(144, 144), (128, 128), (48, 48)])
def test_a_bare_list_tells_its_walk_by_its_length(count, modules):
    reading = detect([str(index) for index in range(2 * count)], {})
    assert (reading.layout, len(reading.modules), reading.problems) == (BY_NAME["cloneofsimo-list"], modules, ())
    assert detect([str(index) for index in range(2 * count - 2)], {}).problems


def test_all_of_a_sat_checkpoint_is_explained():
    base = "model.diffusion_model.transformer.layers.0.attention"
    keys = [
        f"{base}.query_key_value.matrix_A.2",
        f"{base}.query_key_value.matrix_B.2",
        f"{base}.query_key_value.original.weight",
        "model.diffusion_model.mixins.patch_embed.proj.weight",
        "conditioner.embedders.0.transformer.shared.weight",
        "first_stage_model.encoder.conv_in.conv.weight",
    ]
    reading = detect(keys, {})
    assert (reading.layout, reading.num_base, reading.problems) == (BY_NAME["sat"], 4, ())
    assert list(reading.modules) == ["transformer.transformer_blocks.0.attn1.to_v"]
    assert detect([*keys, f"{base}.query_key_value.matrix_A.3"], {}).problems
    assert detect([*keys, f"{base}.dense.matrix_A.1"], {}).problems


@pytest.mark.parametrize(
    "ending",
    ["lora_A.weight", "lora_down.weight", "hada_w1_a", "lokr_w2", "dora_scale", "alpha", "diff", "diff_b", "oft_blocks"],
)
@pytest.mark.parametrize("module", ["model.diffusion_model.transformer.layers.0.mlp", "conditioner.x", "first_stage_model.x"])
def test_in_a_sat_checkpoint_nothing_that_looks_like_an_adapter_passes_for_the_base(module, ending):
    keys = [f"model.diffusion_model.transformer.layers.0.attention.dense.matrix_{side}.0" for side in "AB"]
    reading = detect([*keys, f"{module}.{ending}"], {})
    assert (reading.layout, reading.num_base) == (BY_NAME["sat"], 0)
    assert f"'{module}.{ending}'" in reading.problems[0]


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "kohya"),
        ("lora_unet__double_blocks_0_img_attn_proj.lora_down.weight", "fun"),
        ("lora_transformer_double_blocks_0_img_attn_proj.lora_down.weight", "onetrainer"),
        ("diffusion_model.input_blocks.77.1.proj_in.lora_down.weight", "comfyui"),
        ("base_model.model.to_q.ia3_l", "peft"),
        ("unet:7:middle", "cloneofsimo"),
        ("model.layers.0.matrix_A.7", "sat"),
        ("stray", None),
    ],
)
def test_a_file_that_no_layout_explains_is_told_by_its_prefixes(key, layout):
    reading = detect([key], {})
    assert (reading.layout.name if reading.layout else None) == layout
    assert len(reading.problems) == 1


def test_a_name_of_many_letters_is_a_stranger_at_once():
    for key in (f"lora_unet_input_blocks_{'_' * 80_000}", f"transformer.{'a.' * 40_000}lora_A.weight", f"unet:{'9' * 9_000}"):
        start = time.process_time()
        assert detect([key], {}).problems
        assert time.process_time() - start < 0.1


@settings(deadline=None)
@given(
    st.lists(st.text(max_size=40), max_size=6), st.dictionaries(st.sampled_from(["unet", "text_encoder"]), st.text(max_size=9))
)
def test_no_set_of_names_breaks_the_engine(keys, metadata):
    reading = detect(keys, metadata)
    explained = sum(len(slots) for slots in reading.modules.values()) + len(reading.tokens) + reading.num_base
    assert explained == len(set(keys)) or reading.problems
