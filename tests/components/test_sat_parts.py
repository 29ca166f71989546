"""Where the roles of a SAT model come from, and what becomes of its weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracle import GOLDEN
from sat import base_of, deepspeed, largest_error, load_case, recording, yamls
from tiny_models import build_pipeline

import reelora
from reelora.components import load_components
from reelora.errors import ComponentError, ConfigError
from reelora.recipes import Silent, convert_checkpoint
from reelora.tensorio import open_checkpoint, write_checkpoint

FINETUNED = GOLDEN / "t2v_2b_finetune_lora"


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A whole tiny model as a SAT checkpoint, its YAML beside it."""
    folder = tmp_path_factory.mktemp("sat")
    build_pipeline("2B").save_pretrained(folder / "ours")
    convert_checkpoint(str(folder / "ours"), folder / "sat", form="sat", listener=Silent())
    return folder / "sat"


def test_without_a_path_the_yaml_says_where_the_checkpoint_is():
    parts = load_components(None, roles=["transformer"], sat_config=yamls("i2v_5b"))
    assert parts.root == GOLDEN / "i2v_5b" / "transformer"
    assert largest_error(parts.transformer, recording("i2v_5b"), "a") < 2e-6


@pytest.mark.parametrize("place", ["", "1", "1/mp_rank_00_model_states.pt"])
def test_folder_iteration_and_bare_file_are_the_same_checkpoint(place):
    config = yamls("i2v_5b")
    parts = load_components(GOLDEN / "i2v_5b" / "transformer" / place, roles=["transformer"], sat_config=config)
    assert largest_error(parts.transformer, recording("i2v_5b"), "c") < 2e-6


@pytest.mark.parametrize("root", ["", "state_dict", "module", "model"])
def test_a_bare_file_may_hold_its_tensors_anywhere(root, tmp_path):
    stored = open_checkpoint(GOLDEN / "i2v_5b" / "transformer" / "1" / "mp_rank_00_model_states.pt").under("module")
    write_checkpoint(tmp_path / "a.pt", {root: dict(stored)} if root else dict(stored))
    parts = load_components(tmp_path / "a.pt", roles=["transformer"], sat_config=yamls("i2v_5b"))
    assert largest_error(parts.transformer, recording("i2v_5b"), "c") < 2e-6


def test_the_word_release_is_an_iteration(tmp_path):
    shutil.copytree(GOLDEN / "i2v_5b" / "transformer", tmp_path / "sat")
    (tmp_path / "sat" / "1").rename(tmp_path / "sat" / "release")
    (tmp_path / "sat" / "latest").write_text("release\n")
    assert load_components(tmp_path / "sat", roles=["transformer"], sat_config=yamls("i2v_5b")).transformer


def test_weights_stay_views_of_the_file_where_they_lie_as_diffusers_wants_them(tmp_path):
    parts = load_case("t2v_5b", tmp_path)
    attention = parts.transformer.transformer_blocks[0].attn1
    storages = {getattr(attention, name).weight.untyped_storage().data_ptr() for name in ("to_q", "to_k", "to_v")}
    assert len(storages) == 1
    assert attention.to_q.weight.data_ptr() + attention.to_q.weight.nbytes == attention.to_k.weight.data_ptr()


def test_only_what_is_asked_for_is_looked_for(tmp_path):
    config = FINETUNED / "model.yaml"
    parts = load_components(deepspeed(tmp_path), roles=["vae"], sat_config=config)
    assert parts.roles == ("vae",)
    with pytest.raises(ComponentError, match=r"tokenizer: there is no folder .*t5-tiny, which .*model.yaml:\d+ names"):
        load_components(tmp_path, roles=["vae", "tokenizer"], sat_config=config)


def test_without_roles_only_the_configs_are_read(tmp_path):
    parts = load_components(deepspeed(tmp_path), roles=[], sat_config=FINETUNED / "model.yaml")
    assert parts.facts.num_text_tokens == 16
    assert parts.facts.scaling_factor == 1.15258426
    assert parts.roles == ()


def test_all_missing_roles_are_named_at_once(tmp_path):
    config = yaml.safe_load((FINETUNED / "model.yaml").read_text())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    path = base_of("t2v_2b", tmp_path / "sat")
    with pytest.raises(ComponentError) as refused:
        load_components(path, roles=["vae", "text_encoder", "tokenizer"], sat_config=tmp_path / "model.yaml")
    for role in ("vae", "text_encoder", "tokenizer"):
        assert f"{role}: there is no" in str(refused.value)


def test_paths_say_where_a_role_comes_from_instead(whole, tmp_path):
    config = yaml.safe_load((whole / "model.yaml").read_text())
    config["model"]["first_stage_config"]["params"]["ckpt_path"] = "nowhere"
    shutil.copytree(whole, tmp_path / "sat")
    (tmp_path / "sat" / "model.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="encoder_config or decoder_config is missing"):
        load_components(tmp_path / "sat", roles=["vae"])
    config["model"]["first_stage_config"] = {"target": "sgm.models.autoencoder.IdentityFirstStage"}
    (tmp_path / "sat" / "model.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ComponentError, match="the YAML names none; pass paths"):
        load_components(tmp_path / "sat", roles=["vae"])
    assert load_components(tmp_path / "sat", roles=["vae"], paths={"vae": whole / "vae"}).vae.config.norm_num_groups == 2


def test_a_whole_sat_model_gives_the_stock_pipeline_and_it_makes_a_video(whole):
    parts = load_components(whole, dtype=torch.float32)
    assert parts.roles == ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipeline: Any = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_frames": 9, "height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 8}
    video = pipeline("a red star", output_type="pt", generator=torch.Generator().manual_seed(0), **options).frames
    assert video.shape == (1, 9, 3, 32, 32)
    assert torch.isfinite(video).all()


def test_a_sat_model_is_asked_for_its_yaml(tmp_path):
    with pytest.raises(ConfigError, match=r"which does not say what model it is: pass its YAML files with sat_config"):
        load_components(base_of("t2v_2b", tmp_path / "sat"), roles=["transformer"])


def test_the_dtype_is_as_stored_or_as_asked(tmp_path):
    config = FINETUNED / "model.yaml"
    stored = load_components(deepspeed(tmp_path), roles=["transformer"], sat_config=config).transformer
    assert stored.proj_out.weight.dtype == stored.patch_embed.pos_embedding.dtype == torch.bfloat16
    asked = load_components(tmp_path, roles=["transformer"], sat_config=config, dtype=torch.float16).transformer
    assert asked.proj_out.weight.dtype == asked.patch_embed.pos_embedding.dtype == torch.float16


def test_the_report_says_what_is_not_used_and_why(tmp_path):
    report = str(load_case("t2v_5b_lora_a8", tmp_path).report)
    assert "2 tensors are not used (a rotary table: computed from the size of the clip)" in report
    assert "a position table that nothing reads" in report
    assert "LoRA acts on 8 modules of the transformer, scale by the YAML's lora_config: alpha 8, r 4" in report


def test_the_report_says_how_the_yaml_samples(whole):
    report = str(load_components(whole, roles=["scheduler"]).report)
    assert "sampling='sat', scheduler='dpm', steps=50, guidance=6.0, guidance_schedule='dynamic', guidance_exponent=5" in report


def test_a_base_checkpoint_in_a_config_with_lora_is_the_base(tmp_path):
    parts = load_components(base_of("t2v_2b", tmp_path), roles=["transformer"], sat_config=yamls("t2v_2b_lora"))
    assert parts.adapter is None
    assert "no LoRA: this is the base alone" in str(parts.report)
    assert largest_error(parts.transformer, recording("t2v_2b"), "a") < 2e-6


def test_other_weights_are_taken_into_the_same_objects(tmp_path):
    parts = load_components(base_of("t2v_2b", tmp_path / "base"), roles=["transformer"], sat_config=yamls("t2v_2b_lora"))
    model = parts.transformer
    parts.load_weights(GOLDEN / "t2v_2b_lora" / "transformer")
    assert parts.transformer is model
    assert parts.adapter is not None
    assert largest_error(model, recording("t2v_2b_lora"), "a") < 2e-6
    reelora.detach(model)
    assert largest_error(model, recording("t2v_2b"), "a") < 2e-6
    parts.load_weights(tmp_path / "base")
    assert parts.adapter is None
    assert largest_error(model, recording("t2v_2b"), "b") < 2e-6


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    parts = load_case("t2v_2b", tmp_path / "base")
    before = weights_of(parts.transformer)
    for wrong in (base_of("t2v_5b", tmp_path / "other"), GOLDEN / "t2v_2b_lora" / "transformer", tmp_path / "nothing"):
        with pytest.raises((ComponentError, OSError)):
            parts.load_weights(wrong)
    after = weights_of(parts.transformer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert parts.root == tmp_path / "base"


def test_a_folder_of_diffusers_takes_no_other_weights(tmp_path):
    build_pipeline("5B").save_pretrained(tmp_path / "ours")
    with pytest.raises(ComponentError, match="holds config and weights together"):
        load_components(tmp_path / "ours", roles=["transformer"]).load_weights(tmp_path)


def test_clips_longer_than_the_table_are_refused(tmp_path):
    model = load_case("i2v_5b", tmp_path).transformer
    latents = torch.zeros(1, 4, 32, 6, 8)
    with pytest.raises(ComponentError, match="The position table has 9 frames, 13 were asked for"):
        model.patch_embed(torch.zeros(1, 16, 48), latents)


def test_a_patch_weight_stored_as_a_matrix_is_the_same_convolution(tmp_path):
    """CogVideo at its head stores ``[1, 2, 2]`` patches as a Linear, in the order channel, height, width."""
    path = base_of("t2v_5b", tmp_path / "sat")
    file = path / "1" / "mp_rank_00_model_states.pt"
    tensors = {name: tensor.clone() for name, tensor in open_checkpoint(file).under("module").items()}
    name = "model.diffusion_model.mixins.patch_embed.proj.weight"
    write_checkpoint(file, {"module": tensors | {name: tensors[name].flatten(1)}})
    config = yaml.safe_load((GOLDEN / "t2v_5b" / "model.yaml").read_text())
    config["model"]["network_config"]["params"]["patch_size"] = [1, 2, 2]
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    parts = load_components(path, roles=["transformer"], sat_config=tmp_path / "model.yaml")
    assert largest_error(parts.transformer, recording("t2v_5b"), "a") < 2e-6
