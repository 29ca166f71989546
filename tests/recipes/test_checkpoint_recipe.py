"""Whole models from SAT to diffusers and back: every tensor accounted for, and the same on the way back."""

import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from oracle import GOLDEN, oracle_folders
from sat import LORAS, base_of, deepspeed, largest_error, recording, yamls
from tiny_models import build_pipeline

from reelora.adapters import read_adapter
from reelora.components import load_components, open_sat, read_model, rebuilt_tables
from reelora.errors import ComponentError, ConfigError, FileFormatError
from reelora.layouts import sat_names
from reelora.lora import Rack
from reelora.recipes import Silent, convert_checkpoint
from reelora.tensorio import open_checkpoint, open_tensors, same_bytes

DEAD = "model.diffusion_model.transformer.position_embeddings.weight"
FINETUNED = GOLDEN / "t2v_2b_finetune_lora"
CASES = ("t2v_2b", "t2v_5b", "i2v_5b")
CONVERTED = {case: GOLDEN / lora / "base" for case, lora in LORAS.items()} | {
    folder.name: folder / "diffusers_transformer" for folder in oracle_folders("i2v_5b")
}
"""What the original converter made of a case."""
KINDS = {"2B": {}, "5B": {}, "5B-I2V": {}, "1.5": {}, "1.5-I2V": {"in_channels": 8, "ofs_embed_dim": 8}}
PARTS = ("transformer", "vae", "text_encoder")


def convert(source: Path | str, output: Path, form: str, **options):
    return convert_checkpoint(str(source), output, form=form, check=True, listener=Silent(), **options)


def tiny(kind: str, folder: Path, **options) -> Path:
    """A whole tiny model in diffusers' layout."""
    build_pipeline(kind.removesuffix("-I2V") if kind == "1.5-I2V" else kind, **KINDS[kind], **options).save_pretrained(folder)
    return folder


def differing(first: Any, second: Any) -> list[str]:
    """Names of tensors that only one has, or that differ in a bit."""
    common = set(first) & set(second)
    return sorted((set(first) ^ set(second)) | {name for name in common if not same_bytes(first[name], second[name])})


@pytest.mark.parametrize("case", CONVERTED)
def test_the_folder_for_diffusers_is_bit_for_bit_that_of_the_original_converter(case, tmp_path):
    source = base_of(case, tmp_path / "sat")
    convert(source, tmp_path / "out", "diffusers", roles=["transformer"], sat_config=yamls(case))
    wanted = CONVERTED[case]
    assert differing(open_tensors(wanted), open_tensors(tmp_path / "out")) == []
    told, ours = (json.loads((folder / "config.json").read_text()) for folder in (wanted, tmp_path / "out"))
    assert {name for name in told if told[name] != ours[name]} == set()


@pytest.mark.parametrize("case", CASES)
def test_sat_to_diffusers_to_sat_is_the_identity_but_for_the_dead_table(case, tmp_path):
    source = base_of(case, tmp_path / "sat")
    convert(source, tmp_path / "there", "diffusers", roles=["transformer", "scheduler"], sat_config=yamls(case))
    convert(tmp_path / "there", tmp_path / "back", "sat", roles=["transformer"])
    first, second = open_sat(source).tensors, open_sat(tmp_path / "back").tensors
    assert set(differing(first, second)) <= {DEAD}
    assert DEAD not in second or not second[DEAD].any()
    rows = json.loads((tmp_path / "back" / "conversion.json").read_text())["keys"]
    made = {row["name"]: row["how"] for row in rows if not row["from"]}
    assert all(how in ("zeros: nothing reads it", "computed from the config") for how in made.values())
    assert ("transformer.transformer.position_embeddings.weight" in made) == (DEAD in second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mp", [1, 2])
def test_diffusers_to_sat_to_diffusers_is_the_identity(kind, mp, tmp_path):
    source = tiny(kind, tmp_path / "ours", dtype=torch.bfloat16)
    convert(source, tmp_path / "sat", "sat", mp=mp)
    convert(tmp_path / "sat", tmp_path / "back", "diffusers")
    for role in PARTS:
        assert differing(open_tensors(source / role), open_tensors(tmp_path / "back" / role)) == []
    first, second = (json.loads((folder / "transformer" / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    # Text length and, with rotary positions, the stretch of a table that is not used, are not in a SAT config otherwise.
    assert {name for name in first if first[name] != second[name]} <= {"_name_or_path"}


@pytest.mark.parametrize("kind", ["5B", "1.5"])
def test_a_converted_folder_is_a_whole_pipeline_for_stock_diffusers(kind, tmp_path):
    convert(tiny(kind, tmp_path / "ours"), tmp_path / "sat", "sat")
    convert(tmp_path / "sat", tmp_path / "back", "diffusers")
    stock: Any = CogVideoXPipeline.from_pretrained(tmp_path / "back")
    assert type(stock.transformer).__name__ == "CogVideoXTransformer3DModel"
    assert stock.tokenizer("a red star").input_ids == load_components(tmp_path / "ours").tokenizer("a red star").input_ids
    assert stock.scheduler.config.snr_shift_scale == 3.0


def test_our_shards_are_bit_for_bit_those_of_sat(tmp_path):
    source = base_of("t2v_2b", tmp_path / "sat")
    convert(source, tmp_path / "mp", "sat", roles=["transformer"], sat_config=yamls("t2v_2b"), mp=2)
    for rank in range(2):
        name = Path("1") / f"mp_rank_{rank:02d}_model_states.pt"
        theirs = open_checkpoint(GOLDEN / "t2v_2b_mp2" / "transformer" / name).under("module")
        assert differing(theirs, open_checkpoint(tmp_path / "mp" / name).under("module")) == []


def test_shards_come_out_as_one(tmp_path):
    convert(
        GOLDEN / "t2v_2b_mp2" / "transformer", tmp_path / "out", "diffusers", roles=["transformer"], sat_config=yamls("t2v_2b")
    )
    assert differing(open_tensors(GOLDEN / "t2v_2b_lora" / "base"), open_tensors(tmp_path / "out")) == []


@pytest.mark.parametrize("case", LORAS.values())
@pytest.mark.parametrize("form", ["diffusers", "sat"])
def test_a_lora_is_merged_into_the_weights(case, form, tmp_path):
    roles = ["transformer", "scheduler"]
    convert(GOLDEN / case / "transformer", tmp_path / "out", form, roles=roles, sat_config=yamls(case))
    parts = load_components(tmp_path / "out", roles=["transformer"])
    parts.transformer.norm_out.norm.eps = 1e-6
    assert parts.adapter is None
    # Clips of the model's own length: only there does diffusers' table equal the stored one.
    assert largest_error(parts.transformer, recording(case), "a") < 2e-6


@pytest.mark.parametrize(("case", "scale"), [("t2v_2b_lora", 1 / 4), ("t2v_5b_lora_a8", 8 / 4)])
def test_a_lora_is_written_beside_with_its_true_scale(case, scale, tmp_path):
    options: dict[str, Any] = {"roles": ["transformer", "scheduler"], "sat_config": yamls(case), "lora": "beside"}
    convert(GOLDEN / case / "transformer", tmp_path / "out", "diffusers", **options)
    adapter = read_adapter(tmp_path / "out" / "adapter.safetensors")
    assert {pair.scale for pair in adapter.pairs.values()} == {scale}
    parts = load_components(tmp_path / "out", roles=["transformer"])
    parts.transformer.norm_out.norm.eps = 1e-6
    rack = Rack(parts.transformer)
    rack.load("beside", adapter)
    with rack.using({"beside": 1.0}):
        assert largest_error(parts.transformer, recording(case), "a") < 2e-6


@pytest.mark.parametrize("folder", oracle_folders("t2v_2b_finetune_lora"))
def test_a_fine_tune_converts_with_its_text_encoder_and_vae(folder, tmp_path):
    convert(folder / "ckpts", tmp_path / "out", "diffusers", sat_config=[folder / "model.yaml", folder / "sft.yaml"])
    parts = load_components(tmp_path / "out", dtype=torch.float32)
    parts.transformer.norm_out.norm.eps = 1e-6
    # The stored table is rounded to bfloat16, diffusers computes its own.
    assert largest_error(parts.transformer, recording("t2v_2b_finetune_lora"), "a") < 3e-3
    states = parts.text_encoder(recording("t2v_2b_finetune_lora")["t5.input_ids"])[0]
    assert torch.allclose(states, recording("t2v_2b_finetune_lora")["t5.embedding"], atol=1e-6)
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert any("differs from the stored one by at most 1.9e-03" in note for note in report["notes"])


def test_a_fine_tune_by_deepspeed_converts_role_by_role(tmp_path):
    source, config = deepspeed(tmp_path / "sat"), [FINETUNED / "model.yaml", FINETUNED / "sft.yaml"]
    for role in ("transformer", "text_encoder", "vae"):
        convert(source, tmp_path / role, "diffusers", roles=[role], sat_config=config)
        assert len(open_tensors(tmp_path / role)) > 20


def test_a_vae_of_sats_kind_goes_into_sats_file_and_back(tmp_path):
    pipeline = build_pipeline("5B")
    sizes = {"block_out_channels": [32, 64, 32, 32], "layers_per_block": 1, "latent_channels": 4, "scaling_factor": 0.7}
    pipeline.vae = AutoencoderKLCogVideoX.from_config(sizes | {"sample_height": 32, "sample_width": 32})
    pipeline.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "sat", "sat")
    stored = open_checkpoint(tmp_path / "sat" / "vae" / "3d-vae.pt").under("state_dict")
    assert "decoder.up.3.block.0.conv1.conv.weight" in stored
    convert(tmp_path / "sat", tmp_path / "back", "diffusers")
    assert differing(open_tensors(tmp_path / "ours" / "vae"), open_tensors(tmp_path / "back" / "vae")) == []
    first, second = (
        json.loads((folder / "vae" / "config.json").read_text()) for folder in (tmp_path / "ours", tmp_path / "back")
    )
    assert {name for name in first if first[name] != second[name]} == set()


@pytest.mark.parametrize("folder", oracle_folders("vae"))
def test_the_recorded_vae_goes_to_diffusers_and_back(folder, tmp_path):
    options: dict[str, Any] = {"roles": ["vae"], "sat_config": [folder / "model_v10.yaml"]}
    convert(folder / "vae" / "3d-vae.pt", tmp_path / "there", "diffusers", **options)
    assert differing(open_tensors(tmp_path / "there"), _mapped(folder)) == []
    convert(folder / "vae" / "3d-vae.pt", tmp_path / "again", "sat", **options)
    theirs = open_checkpoint(folder / "vae" / "3d-vae.pt").under("state_dict")
    ours = open_checkpoint(tmp_path / "again" / "vae" / "3d-vae.pt").under("state_dict")
    assert differing(theirs, ours) == ["loss.logvar"]


def _mapped(folder: Path) -> dict[str, torch.Tensor]:
    lines = (GOLDEN / "maps" / "vae.tsv").read_text().splitlines()
    pairs = [line.split("\t")[:2] for line in lines]
    stored = open_checkpoint(folder / "vae" / "3d-vae.pt").under("state_dict")
    return {ours: stored[sat] for sat, ours in pairs if not ours.startswith("(")}


def test_a_vae_that_sat_cannot_compute_stays_in_diffusers_layout_and_is_said_to(tmp_path):
    outcome = convert(tiny("5B", tmp_path / "ours"), tmp_path / "sat", "sat")
    assert any("The VAE stays in diffusers' layout" in note for note in outcome.notes)
    assert load_components(tmp_path / "sat", roles=["vae"]).vae.config.norm_num_groups == 2


def test_every_tensor_of_the_source_is_in_the_report(tmp_path):
    source = base_of("t2v_5b", tmp_path / "sat")
    convert(source, tmp_path / "out", "diffusers", roles=["transformer"], sat_config=yamls("t2v_5b"))
    rows = json.loads((tmp_path / "out" / "conversion.json").read_text())["keys"]
    named = {source.removeprefix("transformer.") for row in rows for source in row["from"]}
    assert named == {name.removeprefix("model.diffusion_model.") for name in open_sat(source).tensors}
    assert {row["name"].removeprefix("transformer.") for row in rows if row["name"]} == set(open_tensors(tmp_path / "out"))


@pytest.mark.parametrize("form", ["diffusers", "sat"])
def test_another_dtype_is_a_cast_of_every_weight(form, tmp_path):
    source = tiny("5B", tmp_path / "ours")
    convert(source, tmp_path / "out", form, dtype="bf16")
    parts = load_components(tmp_path / "out", roles=list(PARTS))
    assert {report.dtypes for report in parts.report.parts} == {(torch.bfloat16,)}
    original = open_tensors(source / "transformer")["proj_out.weight"]
    assert same_bytes(parts.transformer.proj_out.weight.data, original.bfloat16())


def test_what_stock_diffusers_computes_otherwise_is_said(tmp_path):
    outcome = convert(
        GOLDEN / "i2v_5b" / "transformer", tmp_path / "out", "diffusers", roles=["transformer"], sat_config=yamls("i2v_5b")
    )
    assert any("epsilon 1e-05 in its last norm, SAT 1e-06" in note for note in outcome.notes)
    assert any("computes a table of sines" in note for note in outcome.notes)


def test_a_check_that_finds_a_difference_leaves_nothing(tmp_path, monkeypatch):
    source = tiny("5B", tmp_path / "ours")
    monkeypatch.setattr("reelora.recipes.checkpoint.run.same_bytes", lambda *_: False)
    with pytest.raises(FileFormatError, match="are not read back as they were written"):
        convert(source, tmp_path / "out", "sat")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ours"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "diffuser"}, "There is no form 'diffuser': did you mean 'diffusers'"),
        ({"form": "sat", "mp": 3}, "divides into 1, 2, 4, 8 shards, not into 3"),
        ({"form": "sat", "mp": 4}, "2 heads do not divide into 4 shards"),
        ({"form": "diffusers", "mp": 2}, "Only a SAT checkpoint has model-parallel shards"),
        ({"form": "sat", "lora": "away"}, "There is no way with a LoRA 'away'"),
        ({"form": "sat", "dtype": "int8"}, "No dtype is called 'int8'"),
        ({"form": "sat", "roles": ["scheduler"]}, "SAT has no file for a scheduler alone"),
        ({"form": "sat", "roles": ["vea"]}, "'vea' is no role, did you mean 'vae'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(options, said, tmp_path):
    source = tiny("5B", tmp_path / "ours")
    with pytest.raises(ConfigError, match=said):
        convert_checkpoint(str(source), tmp_path / "out", listener=Silent(), **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        convert(tiny("5B", tmp_path / "ours"), tmp_path / "out", "sat")


def test_a_model_that_sat_cannot_compute_is_refused(tmp_path):
    source = tiny("5B", tmp_path / "ours")
    file = source / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"activation_fn": "gelu"}))
    with pytest.raises(ConfigError, match="activation_fn is gelu, in SAT gelu-approximate"):
        convert(source, tmp_path / "out", "sat")


def test_a_whole_model_lacks_nothing(tmp_path):
    with pytest.raises(ComponentError, match=r"tokenizer: .* the YAML has no conditioner_config"):
        convert(base_of("t2v_2b", tmp_path / "sat"), tmp_path / "out", "diffusers", sat_config=yamls("t2v_2b"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_leaves_nothing(tmp_path):
    source = Path(shutil.copytree(tiny("5B", tmp_path / "ours"), tmp_path / "copy"))
    file = source / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(FileFormatError):
        convert(source, tmp_path / "out", "sat")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy", "ours"]


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("cogvideox_2b", 736, 17 + 18 * 30),
        ("cogvideox_5b", 1024, 19 + 18 * 42),
        ("cogvideox_5b_i2v", 1025, 20 + 18 * 42),
        ("cogvideox1.5_5b", 1024, 17 + 18 * 42),
        ("cogvideox1.5_5b_i2v", 1028, 21 + 18 * 42),
    ],
)
def test_published_sizes_have_as_many_tensors_as_published_files(name, ours, theirs):
    """Counts of diffusers' published folders and of SAT's files (557 for 2B: CogVideo issue 244)."""
    config = read_model([GOLDEN / "configs" / f"{name}.yaml"]).transformer
    with torch.device("meta"):
        model: Any = CogVideoXTransformer3DModel.from_config(dict(config))
    state = model.state_dict()
    writing = sat_names("transformer").write(state)
    tables = rebuilt_tables(model, torch.bfloat16, num_dead_positions=64)
    # The code of 1.5 keeps its rotary tables out of the file.
    assert (len(state), writing.strangers, len({*writing.joins, *tables})) == (ours, (), theirs)
    width, patch = config["num_attention_heads"] * 64, (config["in_channels"], *([2, 2, 2] if "1.5" in name else [2, 2]))
    shape = (width, prod(patch)) if "1.5" in name else (width, *patch)
    assert state[writing.joins["mixins.patch_embed.proj.weight"].names[0]].shape == shape
    assert all(table.shape[-1] in (64, width) for table in tables.values())
