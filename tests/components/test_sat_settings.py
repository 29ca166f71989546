"""SAT's YAML files: what they say in the words of diffusers, and what they must not say."""

import re
from pathlib import Path

import pytest
import yaml
from oracle import GOLDEN

from reelora.catalog import MODELS, facts_for
from reelora.components import read_model
from reelora.errors import ConfigError, FileFormatError

CONFIGS = GOLDEN / "configs"
PUBLISHED = {
    "cogvideox_2b": "CogVideoX-2B",
    "cogvideox_2b_lora": "CogVideoX-2B",
    "cogvideox_5b": "CogVideoX-5B",
    "cogvideox_5b_lora": "CogVideoX-5B",
    "cogvideox_5b_i2v": "CogVideoX-5B-I2V",
    "cogvideox_5b_i2v_lora": "CogVideoX-5B-I2V",
    "cogvideox1.5_5b": "CogVideoX1.5-5B",
    "cogvideox1.5_5b_i2v": "CogVideoX1.5-5B-I2V",
}
"""CogVideo's own configs and the model that each is of."""
LORA = {"cogvideox_2b_lora": 128, "cogvideox_5b_lora": 128, "cogvideox_5b_i2v_lora": 256}


@pytest.fixture
def config(tmp_path):
    """A way to change one setting of a small config: a path of names, and the value."""

    def write(*changes: tuple[str, object], case: str = "t2v_2b_finetune_lora") -> Path:
        content = yaml.safe_load((GOLDEN / case / "model.yaml").read_text())
        for path, value in changes:
            *above, last = path.split(".")
            section = content["model"]
            for name in above:
                section = section[int(name) if name.isdigit() else name]
            section[last] = value
        file = tmp_path / "changed.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_config_is_the_model_that_the_catalog_knows(name):
    model = read_model([CONFIGS / f"{name}.yaml", CONFIGS / "inference.yaml"])
    facts = facts_for({"_class_name": "CogVideoXTransformer3DModel", **model.transformer}, model.vae)
    assert facts == next(row for row in MODELS if row.name == PUBLISHED[name])
    assert model.scheduler["snr_shift_scale"] == facts.snr_shift_scale
    assert model.transformer["max_text_seq_length"] == facts.num_text_tokens
    assert (model.transformer["sample_height"] * 8, model.transformer["sample_width"] * 8) == (
        facts.default_height,
        facts.default_width,
    )
    assert (model.lora.rank if model.lora else None) == LORA.get(name)
    assert model.sampling is not None
    assert (model.sampling.scheduler, model.sampling.is_dynamic, model.sampling.exponent) == ("dpm", True, 5)


def test_position_embeddings_are_told_apart():
    kinds = {name: read_model([CONFIGS / f"{name}.yaml"]).transformer for name in PUBLISHED}
    rotary = {name: kind["use_rotary_positional_embeddings"] for name, kind in kinds.items()}
    learned = {name: kind["use_learned_positional_embeddings"] for name, kind in kinds.items()}
    assert [name for name, is_rotary in rotary.items() if not is_rotary] == ["cogvideox_2b", "cogvideox_2b_lora"]
    assert [name for name, is_learned in learned.items() if is_learned] == ["cogvideox_5b_i2v", "cogvideox_5b_i2v_lora"]
    assert kinds["cogvideox1.5_5b_i2v"]["ofs_embed_dim"] == 512
    assert kinds["cogvideox_2b"]["spatial_interpolation_scale"] == 1.875


def test_of_two_files_the_later_wins_setting_by_setting(tmp_path, config):
    later = tmp_path / "later.yaml"
    later.write_text("model:\n  network_config:\n    params:\n      num_layers: 7\nargs:\n  load: elsewhere\n")
    model = read_model([config(), later])
    assert model.transformer["num_layers"] == 7
    assert model.transformer["num_attention_heads"] == 4
    assert model.load == tmp_path / "elsewhere"


def test_paths_are_relative_to_the_file_that_names_them():
    model = read_model([GOLDEN / "t2v_2b_finetune_lora" / name for name in ("model.yaml", "sft.yaml")])
    folder = GOLDEN / "t2v_2b_finetune_lora"
    assert model.text is not None
    assert (model.load, model.vae_file, model.text.folder) == (folder / "base", folder / "vae16.pt", folder / "t5-tiny")


@pytest.mark.parametrize("patch", [2, [1, 2, 2]])
def test_a_patch_is_a_number_or_three(config, patch):
    transformer = read_model([config(("network_config.params.patch_size", patch))]).transformer
    assert (transformer["patch_size_t"], transformer["patch_size"]) == (None, 2)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("network_config.target", "os.system", "'os.system'; what is known here is dit_video_concat.DiffusionTransformer"),
        ("network_config.params.use_SwiGLU", True, "use_SwiGLU is True, it must be False"),
        ("network_config.params.num_layer", 3, "'num_layer' is no setting that is known here, did you mean 'num_layers'?"),
        ("network_config.params.num_layers", "three", "num_layers is 'three', it must be a whole number from 1 to 1,000"),
        ("network_config.params.elementwise_affine", False, "elementwise_affine is False, it must be True"),
        ("network_config.params.patch_size", [2, 2], "patch_size is [2, 2], it must be a whole number or [time, side, side]"),
        ("network_config.params.num_attention_heads", 5, "64 channels are no multiple of 5 heads"),
        ("network_config.params.ofs_embed_dim", 16, "ofs_embed_dim is 16, it is added to a time_embed_dim of 32"),
        ("network_config.params.modules.adaln_layer_config.params.qk_ln", False, "qk_ln is False, it must be True"),
        ("network_config.params.modules.pos_embed_config.params.width_interpolation", 1, "must be one number"),
        ("network_config.params.modules.lora_config.params.qlora", True, "qlora is True, it must be False"),
        ("network_config.params.transformer_args.layernorm_order", "sandwich", "layernorm_order is 'sandwich', it must be pre"),
        ("denoiser_config.params.discretization_config.params.keep_start", True, "keep_start is True, it must be False"),
        ("sampler_config.params.discretization_config.params.shift_scale", 1.0, "shift_scale is 1.0 in the sampler and 3.0 in"),
        ("sampler_config.target", "sgm.modules.diffusionmodules.sampling.EDMSampler", "EDMSampler'; what is known here is"),
        ("first_stage_config.params.encoder_config.params.ch_mult", [2, 2, 2, 2], "ch_mult begins with 2"),
        ("first_stage_config.params.decoder_config.params.z_channels", 8, "z_channels is 8, in the encoder 16"),
        ("conditioner_config.params.emb_models", [], "emb_models must be a list of one section"),
        ("conditioner_config.params.emb_models.0.params.max_length", 17, "max_length 17, the network takes text_length 16"),
        ("scale_factor", "big", "scale_factor is 'big', it must be a number above 0"),
        ("network_config", 5, "5 is no section"),
        ("invented", 1, "'invented' is no setting that is known here"),
    ],
)
def test_what_cannot_be_followed_is_named_with_its_line(config, setting, value, said):
    file = config((setting, value))
    with pytest.raises(ConfigError) as refused:
        read_model([file])
    assert said in str(refused.value)
    assert re.search(rf"{re.escape(str(file))}:\d+: ", str(refused.value))


def test_everything_that_is_wrong_is_said_at_once(config):
    file = config(("use_pd", True), ("network_config.params.use_RMSNorm", True), ("invented", 1))
    with pytest.raises(ConfigError, match="3 settings cannot be followed"):
        read_model([file])


def test_the_line_is_that_of_the_setting(tmp_path):
    lines = (GOLDEN / "t2v_2b" / "model.yaml").read_text().splitlines()
    number = next(index for index, line in enumerate(lines) if "num_layers:" in line)
    lines[number] = lines[number].replace("3", "-3")
    (tmp_path / "model.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=rf"model.yaml:{number + 1}: num_layers is -3"):
        read_model([tmp_path / "model.yaml"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [1, 2", "no valid YAML"),
        ("just a text", "is no SAT config"),
        ("", "is no SAT config"),
        ("- model", "is no SAT config"),
        ("a: 1\nb: 2\n", "is no SAT config, which has one of the sections model, args, data, deepspeed"),
        ("model:\n  a: 1\n  a: 2\n", "line 3: 'a' stands there twice"),
        ("model: !!python/object/apply:os.system ['true']\n", "is nothing that a config holds"),
        ("model:\n  ? [1]\n  : 2\n", "a name is no word"),
        ("model: \x00", "no valid YAML"),
    ],
)
def test_a_file_that_is_no_sat_config_is_refused_by_name(tmp_path, text, said):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(FileFormatError, match=re.escape(said)) as refused:
        read_model([tmp_path / "model.yaml"])
    assert str(tmp_path / "model.yaml") in str(refused.value)


def test_an_interpolation_is_refused_with_its_line(config):
    file = config(("network_config.params.num_layers", "${model.depth}"))
    with pytest.raises(ConfigError, match=r"changed.yaml:\d+: '\$\{model.depth\}'. Write the values"):
        read_model([file])


def test_arguments_alone_do_not_describe_a_model():
    with pytest.raises(ConfigError, match="there is no section model"):
        read_model([CONFIGS / "inference.yaml"])


def test_no_file_at_all_is_an_error():
    with pytest.raises(ConfigError, match="sat_config"):
        read_model([])
