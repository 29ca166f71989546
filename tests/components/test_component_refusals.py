"""What is wrong with a model folder is said in one error that names the part, what was found and what it must be."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from reelora.components import load_components
from reelora.errors import ComponentError, ConfigError, FileFormatError

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def rewrite(path, edit):
    stored = load_file(path)
    edit(stored)
    save_file(stored, path)


def test_a_missing_role_says_which_roles_there_are(model, edit_json):
    edit_json(model / "model_index.json", vae=...)
    with pytest.raises(
        ComponentError, match=r"vae: .*model_index.json names none; it has tokenizer, text_encoder, transformer, sch"
    ):
        load_components(model, roles=["vae"])
    assert load_components(model, roles=["scheduler"]).scheduler is not None


@pytest.mark.parametrize("names", [None, 5, [], ["diffusers"], "x"])
def test_an_index_that_names_no_scheduler_is_no_index_of_one(model, edit_json, names):
    edit_json(model / "model_index.json", scheduler=names)
    assert load_components(model, roles=["vae"]).scheduler_class is None
    with pytest.raises(ComponentError, match=r"scheduler: .* names none; it has tokenizer, text_encoder, transformer, vae\.$"):
        load_components(model, roles=["scheduler"])


@pytest.mark.parametrize("names", [None, [None, None]])
def test_a_role_that_the_index_leaves_empty_is_missing(model, edit_json, names):
    edit_json(model / "model_index.json", text_encoder=names)
    assert load_components(model).roles == ("tokenizer", "transformer", "vae", "scheduler")
    with pytest.raises(ComponentError, match=r"text_encoder: .* names none"):
        load_components(model, roles=["text_encoder"])


def test_a_missing_folder_says_what_there_is(model):
    shutil.rmtree(model / "vae")
    with pytest.raises(
        ComponentError, match=r"vae: .* has no folder vae, .* it holds model_index.json, scheduler, text_encoder"
    ):
        load_components(model)


def test_all_roles_that_are_wrong_are_named_at_once_before_any_is_loaded(model, edit_json):
    shutil.rmtree(model / "vae")
    edit_json(model / "model_index.json", text_encoder=["transformers", "BertModel"])
    (model / WEIGHTS).unlink()
    with pytest.raises(ComponentError) as refusal:
        load_components(model)
    assert [line.partition(":")[0] for line in str(refusal.value).splitlines()] == ["text_encoder", "transformer", "vae"]


@pytest.mark.parametrize("role", ["tokenizer", "text_encoder", "transformer", "vae", "scheduler"])
def test_a_wrong_class_is_named_with_the_right_one(model, edit_json, role):
    edit_json(model / "model_index.json", **{role: ["diffusers", "WanTransformer3DModel"]})
    with pytest.raises(ComponentError, match=rf"{role}: found WanTransformer3DModel in .*/{role}; it must be \w+"):
        load_components(model, roles=[role])


def test_a_config_of_another_class_is_named_even_if_the_index_is_right(model, edit_json):
    edit_json(model / "transformer" / "config.json", _class_name="CogView3PlusTransformer2DModel")
    with pytest.raises(ComponentError, match=r"found CogView3PlusTransformer2DModel in .*must be CogVideoXTransformer3DModel"):
        load_components(model, roles=["transformer"])
    edit_json(model / "vae" / "config.json", _class_name="AutoencoderKL")
    with pytest.raises(ComponentError, match=r"says AutoencoderKLCogVideoX but .*config.json says AutoencoderKL; correct one"):
        load_components(model, roles=["vae"])


def test_a_folder_without_an_index_says_what_it_holds(tmp_path, model):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComponentError, match=r"has no model_index.json, .* it holds nothing"):
        load_components(tmp_path / "empty")
    (tmp_path / "empty" / "clip.mp4").touch()
    with pytest.raises(ComponentError, match=r"it holds clip.mp4"):
        load_components(tmp_path / "empty", roles=["vae"])
    with pytest.raises(ComponentError, match=r"holds one part, CogVideoXTransformer3DModel. Pass the folder above it"):
        load_components(model / "transformer")
    with pytest.raises(ComponentError, match=r"is a file; pass the folder"):
        load_components(model / "model_index.json")


def test_a_missing_config_and_missing_weights_are_named(model):
    (model / "vae" / "config.json").unlink()
    (model / WEIGHTS).rename(model / "transformer" / "pytorch_model.bin")
    with pytest.raises(
        ComponentError, match=r"(?s)transformer has no diffusion_pytorch_model.safetensors.*bin.*vae has no config"
    ):
        load_components(model, roles=["vae", "transformer"])


def test_an_index_that_is_no_json_is_a_format_error(model):
    (model / "model_index.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"model_index.json: no valid JSON"):
        load_components(model)
    (model / "model_index.json").write_text("[]")
    with pytest.raises(FileFormatError, match=r"must be an object"):
        load_components(model)


@pytest.mark.parametrize("spoil", [lambda content: content[:-1], lambda content: content[:100], lambda content: b"\xff" * 64])
def test_a_truncated_or_hostile_weight_file_is_a_format_error_that_names_it(model, spoil):
    (model / WEIGHTS).write_bytes(spoil((model / WEIGHTS).read_bytes()))
    with pytest.raises(FileFormatError, match=r"transformer/diffusion_pytorch_model.safetensors: .*(problem|header)"):
        load_components(model, roles=["transformer"])
    assert load_components(model, roles=["vae"]).vae is not None


def test_an_index_of_weights_that_leaves_the_folder_is_refused(model):
    (model / WEIGHTS).unlink()
    index = {"weight_map": {"w": "../vae/diffusion_pytorch_model.safetensors"}}
    (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileFormatError, match="no plain name"):
        load_components(model, roles=["transformer"])


def test_missing_surplus_and_misshapen_tensors_are_counted_and_named_together(model):
    """The peers fill what is missing with random values and go on."""

    def edit(stored):
        del stored["transformer_blocks.0.attn1.to_q.weight"], stored["transformer_blocks.0.attn1.to_k.weight"]
        stored["transformer_blocks.7.attn1.to_q.weight"] = torch.ones(2, 2)
        stored["proj_out.bias"] = torch.ones(3)

    rewrite(model / WEIGHTS, edit)
    with pytest.raises(
        ComponentError,
        match=r"transformer: .*safetensors does not fit the CogVideoXTransformer3DModel .*2 tensors are missing, "
        r"transformer_blocks.0.attn1.to_q.weight, .*to_k.weight; 1 .*another shape, proj_out.bias \[3\] \(must be \[16\]\); "
        r"1 .*surplus, transformer_blocks.7",
    ):
        load_components(model, roles=["transformer"])


def test_integers_and_unrunnable_float8_are_refused(model):
    name = "proj_out.weight"
    rewrite(model / WEIGHTS, lambda stored: stored.update({name: stored[name].to(torch.int8)}))
    with pytest.raises(ComponentError, match=r"1 tensors are stored as integers, proj_out.weight"):
        load_components(model, roles=["transformer"])
    rewrite(model / WEIGHTS, lambda stored: stored.update({name: stored[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(ComponentError, match=r"float8, in which nothing runs: pass a dtype, proj_out.weight"):
        load_components(model, roles=["transformer"])
    assert (
        load_components(model, roles=["transformer"], dtype=torch.bfloat16).transformer.proj_out.weight.dtype == torch.bfloat16
    )


def test_tied_tensors_that_differ_are_refused(model):
    path = model / "text_encoder" / "model.safetensors"
    rewrite(path, lambda stored: stored.update({"encoder.embed_tokens.weight": stored["shared.weight"].clone()}))
    assert load_components(model, roles=["text_encoder"]).text_encoder is not None
    rewrite(path, lambda stored: stored["encoder.embed_tokens.weight"].add_(1))
    with pytest.raises(ComponentError, match=r"shared.weight and encoder.embed_tokens.weight"):
        load_components(model, roles=["text_encoder"])


def test_a_config_that_describes_no_model_is_refused(model, edit_json):
    edit_json(model / "transformer" / "config.json", num_layers="two")
    with pytest.raises(ComponentError, match=r"transformer: .*config.json describes no CogVideoXTransformer3DModel"):
        load_components(model, roles=["transformer"])
    edit_json(model / "text_encoder" / "config.json", model_type="bert")
    with pytest.raises(ComponentError, match=r"model type 'bert', not 't5'"):
        load_components(model, roles=["text_encoder"])


def test_a_tokenizer_without_its_pieces_is_refused(model):
    """transformers makes one that knows no word, without a sign."""
    (model / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ComponentError, match=r"has none of tokenizer.json, spiece.model.*; it holds tokenizer_config.json"):
        load_components(model, roles=["tokenizer"])
    (model / "tokenizer" / "tokenizer.json").write_text("{}{}")
    with pytest.raises(FileFormatError, match=r"tokenizer.json: no valid JSON"):
        load_components(model, roles=["tokenizer"])


@pytest.mark.parametrize("odd", [{"beta_schedule": "sideways"}, {"num_train_timesteps": "many"}, {"num_train_timesteps": -1}])
def test_a_scheduler_with_impossible_values_is_refused(model, edit_json, odd):
    edit_json(model / "scheduler" / "scheduler_config.json", **odd)
    with pytest.raises(ComponentError, match="makes no CogVideoXDPMScheduler"):
        load_components(model, roles=["scheduler"])


def test_unknown_roles_dtypes_and_paths_are_settings_that_are_wrong(model, tmp_path):
    with pytest.raises(ConfigError, match=r"'vea' is no role, did you mean 'vae'\?; 'text' is no role"):
        load_components(model, roles=["vea", "text"])
    with pytest.raises(ConfigError, match="'transformr' is no role"):
        load_components(model, paths={"transformr": tmp_path})
    with pytest.raises(ConfigError, match=r"floating dtype.*vae: torch.int8"):
        load_components(model, roles=["vae"], dtype={"vae": torch.int8})
    with pytest.raises(ComponentError, match=r"vae: there is no .*nowhere"):
        load_components(model, roles=["vae"], paths={"vae": tmp_path / "nowhere"})


def test_a_path_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        load_components(tmp_path / "nowhere")


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """The real huggingface_hub with an empty cache and no way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_without_a_connection_says_what_to_do(offline_hub):
    with pytest.raises(
        ComponentError, match=r"'owner/model' is no folder here, and the hub did not give it: .*pass its folder"
    ):
        load_components("owner/model")


def test_a_hub_that_fails_without_a_word_is_still_one_clear_error(monkeypatch):
    def fail(*_, **__):
        raise OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ComponentError, match=r"'owner/model' is no folder here, and the hub did not give it: OSError"):
        load_components("owner/model")


def test_a_hub_id_that_is_in_the_cache_loads_without_a_connection(offline_hub, models):
    repository = offline_hub / "models--owner--model"
    shutil.copytree(models["5B"], repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    parts = load_components("owner/model", roles=["vae"])
    assert parts.vae.dtype is torch.bfloat16
    assert parts.facts.num_text_tokens == 8
