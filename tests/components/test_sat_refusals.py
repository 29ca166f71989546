"""SAT checkpoints that are damaged, incomplete or of another model: one clear error each, and nothing half-loaded."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from oracle import GOLDEN
from sat import base_of, deepspeed, yamls

from reelora.components import load_components
from reelora.errors import AdapterError, ComponentError, ConfigError, FileFormatError, ReeloraError
from reelora.tensorio import open_checkpoint, write_checkpoint

FILE = "mp_rank_00_model_states.pt"
PREFIX = "model.diffusion_model."


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A copy of the 5B-I2V case, to be spoilt."""
    return Path(shutil.copytree(GOLDEN / "i2v_5b" / "transformer", tmp_path / "sat"))


def load(path, case="i2v_5b"):
    return load_components(path, roles=["transformer"], sat_config=yamls(case))


def rewrite(file: Path, change) -> None:
    """Write a checkpoint anew after a change of its tensors."""
    tensors = {name: tensor.clone() for name, tensor in open_checkpoint(file).under("module").items()}
    change(tensors)
    write_checkpoint(file, {"module": tensors})


def shards(folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "t2v_2b_mp2" / "transformer", folder))


def test_a_lora_in_a_config_without_one_is_an_error_with_the_cause():
    path = GOLDEN / "t2v_2b_lora" / "transformer"
    with pytest.raises(ComponentError, match=r"holds a LoRA of 24 matrices, but .*model.yaml:\d+ has no lora_config. Add"):
        load(path, "t2v_2b")


def test_a_lora_of_another_rank_than_the_yaml_says_is_an_error(tmp_path):
    config = yaml.safe_load((GOLDEN / "t2v_2b_lora" / "model.yaml").read_text())
    config["model"]["network_config"]["params"]["modules"]["lora_config"]["params"]["r"] = 8
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(AdapterError, match="the YAML says r 8, the tensors have 4"):
        load_components(GOLDEN / "t2v_2b_lora" / "transformer", roles=["transformer"], sat_config=tmp_path / "model.yaml")


def test_a_lora_that_lacks_a_layer_is_an_error(tmp_path):
    path = Path(shutil.copytree(GOLDEN / "t2v_2b_lora" / "transformer", tmp_path / "sat"))

    def drop(tensors):
        for name in [name for name in tensors if ".layers.2." in name and ".matrix_" in name]:
            del tensors[name]

    rewrite(path / "1" / FILE, drop)
    with pytest.raises(ComponentError, match=r"4 are missing, transformer.transformer_blocks.2.attn1.to_k"):
        load(path, "t2v_2b_lora")


def test_a_tensor_that_nothing_explains_is_an_error(checkpoint):
    rewrite(checkpoint / "1" / FILE, lambda tensors: tensors.update({f"{PREFIX}mixins.new.weight": torch.ones(2)}))
    with pytest.raises(ComponentError, match=r"1 of 57 tensors .* are no part of a CogVideoX transformer: mixins.new.weight"):
        load(checkpoint)


def test_a_tensor_of_no_role_is_an_error(checkpoint):
    rewrite(checkpoint / "1" / FILE, lambda tensors: tensors.update({"invented.weight": torch.ones(2)}))
    with pytest.raises(ComponentError, match=r"1 tensors are of no part of a CogVideoX, invented.weight"):
        load(checkpoint)


def test_missing_tensors_are_counted_and_named(checkpoint):
    rewrite(checkpoint / "1" / FILE, lambda tensors: tensors.pop(f"{PREFIX}time_embed.0.weight"))
    with pytest.raises(ComponentError, match=r"\(65 tensors\): 1 tensors are missing, time_embedding.linear_1.weight"):
        load(checkpoint)


def test_a_missing_position_table_is_not_made_up(tmp_path):
    path = base_of("t2v_2b", tmp_path / "sat")
    rewrite(path / "1" / FILE, lambda tensors: tensors.pop(f"{PREFIX}mixins.pos_embed.pos_embedding"))
    with pytest.raises(ComponentError, match="the stored position table is missing"):
        load(path, "t2v_2b")


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ({"num_layers": 3}, None, "The checkpoint has 2 layers, the config 3."),
        ({"num_layers": 1}, None, "The checkpoint has 2 layers, the config 1."),
        ({"hidden_size": 128, "num_attention_heads": 8}, None, "The checkpoint is 64 wide, the config 128."),
        ({"in_channels": 16}, None, "The checkpoint takes 32 channels, the config 16: it looks like an image-to-video model."),
        ({"patch_size": [2, 2, 2]}, None, "The checkpoint is of CogVideoX 1.0, the config of 1.5."),
        ({"latent_width": 16}, None, "have another shape, patch_embed.pos_embedding"),
    ],
)
def test_config_and_checkpoint_of_different_models_are_told_apart(tmp_path, setting, value, said):
    config = yaml.safe_load((GOLDEN / "i2v_5b" / "model.yaml").read_text())
    config["model"]["network_config"]["params"].update(setting)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ComponentError, match=re.escape(said)):
        load_components(GOLDEN / "i2v_5b" / "transformer", roles=["transformer"], sat_config=tmp_path / "model.yaml")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(ComponentError, match="does not fit"):
        load(base_of("t2v_5b", tmp_path / "sat"), "i2v_5b")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(checkpoint, share):
    file = checkpoint / "1" / FILE
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(FileFormatError, match=re.escape(str(file))):
        load(checkpoint)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "../1", "release/../1", "x" * 1000, "1 2"])
def test_a_latest_that_names_no_iteration_is_refused(checkpoint, text):
    (checkpoint / "latest").write_text(text)
    with pytest.raises(FileFormatError, match="it has to name an iteration"):
        load(checkpoint)


def test_a_latest_that_points_nowhere_is_an_error(checkpoint):
    (checkpoint / "latest").write_text("500")
    with pytest.raises(FileNotFoundError, match=r"There is no such folder, though .*latest names it"):
        load(checkpoint)


def test_an_iteration_without_files_is_an_error(checkpoint):
    (checkpoint / "1" / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"No mp_rank_00_model_states\.pt"):
        load(checkpoint)


def test_the_folder_above_is_told_where_the_checkpoint_is(checkpoint):
    with pytest.raises(ComponentError, match=r"Pass .*sat, which has one"):
        load_components(checkpoint.parent, roles=["transformer"], sat_config=yamls("i2v_5b"))


def test_no_checkpoint_at_all_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_shard_is_named(tmp_path, rank):
    path = shards(tmp_path / "sat")
    (path / "1" / f"mp_rank_{rank:02d}_model_states.pt").unlink()
    with pytest.raises(ComponentError, match=f"1 of 2 model-parallel shards are missing, mp_rank_{rank:02d}_model_states.pt"):
        load(path, "t2v_2b")


def test_one_shard_taken_for_all_is_recognised(tmp_path):
    path = shards(tmp_path / "sat")
    with pytest.raises(ComponentError, match="It looks like one of 2 model-parallel shards"):
        load(path / "1" / FILE, "t2v_2b")


def test_shards_whose_common_tensors_differ_are_refused(tmp_path):
    path = shards(tmp_path / "sat")
    rewrite(path / "1" / "mp_rank_01_model_states.pt", lambda tensors: tensors[f"{PREFIX}time_embed.0.bias"].add_(1))
    with pytest.raises(ComponentError, match=r"1 tensors that both hold whole differ, .*time_embed.0.bias. Copy all shards"):
        load(path, "t2v_2b")


def test_shards_of_different_iterations_are_refused(tmp_path):
    path = shards(tmp_path / "sat")
    for rank in range(2):
        file = path / "1" / f"mp_rank_{rank:02d}_model_states.pt"
        write_checkpoint(file, {"module": dict(open_checkpoint(file).under("module")), "iteration": 500 + 500 * rank})
    with pytest.raises(ComponentError, match="iteration is 500 in one and 1000 in the other"):
        load(path, "t2v_2b")


def test_shards_of_different_models_are_refused(tmp_path):
    path = shards(tmp_path / "sat")
    rewrite(path / "1" / "mp_rank_01_model_states.pt", lambda tensors: tensors.pop(f"{PREFIX}time_embed.0.bias"))
    with pytest.raises(ComponentError, match="1 tensors are in one of them only"):
        load(path, "t2v_2b")


def test_a_lora_in_shards_is_refused(tmp_path):
    path = Path(shutil.copytree(GOLDEN / "t2v_2b_lora" / "transformer", tmp_path / "sat"))
    shutil.copy(path / "1" / FILE, path / "1" / "mp_rank_01_model_states.pt")
    with pytest.raises(AdapterError, match="its ranks disagree"):
        load(path, "t2v_2b_lora")


def test_the_vaes_file_is_no_transformer(tmp_path):
    write_checkpoint(tmp_path / "vae.pt", {"state_dict": {"encoder.conv_in.conv.weight": torch.ones(2)}})
    with pytest.raises(ComponentError, match=r"holds no tensor of model.diffusion_model; .* Is it the VAE's file"):
        load(tmp_path / "vae.pt")


def test_a_role_that_no_sat_model_has_is_refused(checkpoint):
    with pytest.raises(ComponentError, match="unet: a SAT model has none"):
        load_components(checkpoint, roles=["unet"], sat_config=yamls("i2v_5b"))


def test_weights_that_are_no_t5_are_refused_without_a_config(tmp_path):
    path = deepspeed(tmp_path)
    file = path / "2" / FILE
    kept = {name: t for name, t in open_checkpoint(file).under("module").items() if "relative_attention" not in name}
    write_checkpoint(file, {"module": kept})
    with pytest.raises(ComponentError, match=r"holds no T5 v1\.1"):
        load_components(path, roles=["text_encoder"], sat_config=GOLDEN / "t2v_2b_finetune_lora" / "model.yaml")


def test_a_json_where_the_yaml_should_be_is_read_as_one(tmp_path):
    config = yaml.safe_load((GOLDEN / "i2v_5b" / "model.yaml").read_text())
    (tmp_path / "model.json").write_text(json.dumps(config))
    assert load_components(GOLDEN / "i2v_5b" / "transformer", roles=["transformer"], sat_config=tmp_path / "model.json")


def test_every_refusal_can_be_caught_in_one_place():
    assert issubclass(ComponentError, ReeloraError)
    assert issubclass(ConfigError, ReeloraError)
    assert issubclass(FileFormatError, ReeloraError)
