"""Parts loaded by us are the parts that diffusers and transformers load, mapped and in their stored dtype."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tiny_models import KINDS, build_clip, build_still_vae, build_text_encoder, build_transformer, build_unet
from transformers import T5EncoderModel, T5Tokenizer

from reelora.components import ROLES, fingerprint_of, load_components
from reelora.errors import ComponentError, ConfigError

COGVIDEOX_ROLES = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")


THEIRS = {
    "text_encoder": T5EncoderModel,
    "transformer": CogVideoXTransformer3DModel,
    "vae": AutoencoderKLCogVideoX,
}


def theirs(folder, role, **options):
    return THEIRS[role].from_pretrained(folder, subfolder=role, **options).eval()


def same_state(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def forward(transformer):
    generator = torch.Generator().manual_seed(0)
    dtype = next(transformer.parameters()).dtype
    frames = 4 if transformer.config.patch_size_t else 3
    latents = torch.randn(1, frames, transformer.config.in_channels, 4, 4, generator=generator).to(dtype)
    text = torch.randn(1, 8, 16, generator=generator).to(dtype)
    tokens = (2 if transformer.config.patch_size_t else 3) * 4
    angles = torch.rand(tokens, 16, generator=generator)
    rotary = (angles.cos(), angles.sin()) if transformer.config.use_rotary_positional_embeddings else None
    ofs = torch.full((1,), 2.0, dtype=dtype) if transformer.config.ofs_embed_dim else None
    with torch.no_grad():
        return transformer(latents, text, torch.tensor([500]), ofs=ofs, image_rotary_emb=rotary, return_dict=False)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_equals_the_one_that_diffusers_loads(models, kind):
    """The position table of the 2B is in no file: it must be computed, not left empty."""
    ours = load_components(models[kind], roles=["transformer"]).transformer
    reference = theirs(models[kind], "transformer", dtype=torch.bfloat16)
    same_state(ours, reference)
    assert torch.equal(forward(ours), forward(reference))
    assert type(ours) is type(reference)
    assert dict(ours.config).items() >= {k: v for k, v in reference.config.items() if k != "_name_or_path"}.items()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_position_table_of_the_2b_is_diffusers_own_rounded_once(models, dtype):
    ours = load_components(models["2B"], roles=["transformer"], dtype=dtype).transformer.patch_embed.pos_embedding
    reference = theirs(models["2B"], "transformer").patch_embed.pos_embedding
    assert reference.dtype is torch.float64
    assert ours.dtype is dtype
    assert torch.equal(ours, reference.to(dtype))
    assert ours.count_nonzero() > 0


@pytest.mark.parametrize("role", ["text_encoder", "vae"])
def test_a_text_encoder_and_a_vae_equal_those_that_their_libraries_load(models, role):
    ours = load_components(models["5B"], roles=[role])
    part = getattr(ours, role)
    reference = theirs(models["5B"], role, dtype=torch.bfloat16)
    same_state(part, reference)
    with torch.no_grad():
        if role == "vae":
            video = torch.rand(1, 3, 9, 32, 32).bfloat16()
            assert torch.equal(part.encode(video).latent_dist.parameters, reference.encode(video).latent_dist.parameters)
            latents = torch.rand(1, 4, 2, 4, 4).bfloat16()
            assert torch.equal(part.decode(latents).sample, reference.decode(latents).sample)
        else:
            ids = torch.arange(8)[None]
            assert torch.equal(part(ids)[0], reference(ids)[0])


def test_tied_weights_stay_one_tensor(models):
    encoder = load_components(models["5B"], roles=["text_encoder"]).text_encoder
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_sharded_weights_load_as_whole_ones(models, model):
    for folder, build in (("transformer", lambda: build_transformer("5B")), ("text_encoder", build_text_encoder)):
        for file in (model / folder).glob("*.safetensors"):
            file.unlink()
        build().to(torch.bfloat16).save_pretrained(model / folder, max_shard_size="8KB")
        assert len(list((model / folder).glob("*.safetensors"))) > 1
        parts = load_components(model, roles=[folder])
        same_state(getattr(parts, folder), theirs(model, folder, dtype=torch.bfloat16))
        assert parts.report.parts[0].source.name.endswith(".index.json")


def test_the_stored_dtype_is_kept_and_never_silently_float32(models):
    parts = load_components(models["2B"], roles=["text_encoder", "transformer", "vae"])
    for part in (parts.text_encoder, parts.transformer, parts.vae):
        assert {tensor.dtype for tensor in part.parameters()} == {torch.bfloat16}
        assert {tensor.dtype for tensor in part.buffers()} <= {torch.bfloat16}


def test_a_dtype_is_for_all_roles_or_for_those_that_are_named(models):
    whole = load_components(models["5B"], roles=["transformer", "vae"], dtype=torch.float32)
    assert (whole.transformer.dtype, whole.vae.dtype) == (torch.float32, torch.float32)
    mixed = load_components(models["5B"], roles=["transformer", "vae"], dtype={"vae": torch.float32})
    assert (mixed.transformer.dtype, mixed.vae.dtype) == (torch.bfloat16, torch.float32)
    same_state(mixed.vae, theirs(models["5B"], "vae", dtype=torch.float32))


def test_in_float16_the_layers_of_t5_that_overflow_are_float32_as_in_transformers(models):
    parts = load_components(models["5B"], roles=["text_encoder"], dtype=torch.float16)
    same_state(parts.text_encoder, theirs(models["5B"], "text_encoder", dtype=torch.float16))
    assert parts.report.parts[0].dtypes == (torch.float16, torch.float32)


def test_networks_are_frozen_and_in_evaluation_mode(models):
    parts = load_components(models["5B-I2V"])
    for part in (parts.text_encoder, parts.transformer, parts.vae):
        assert not part.training
        assert not any(tensor.requires_grad for tensor in part.parameters())


def mapped_ranges(folder):
    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    spans = (line[0].split("-") for line in lines if str(folder) in line[-1])
    return [(int(start, 16), int(stop, 16)) for start, stop in spans]


def test_weights_are_views_of_the_mapped_file(models):
    parts = load_components(models["2B"], roles=["text_encoder", "transformer", "vae"])
    for role in parts.roles:
        ranges = mapped_ranges(models["2B"] / role)
        for name, tensor in getattr(parts, role).named_parameters():
            assert any(start <= tensor.data_ptr() < stop for start, stop in ranges), name


def test_no_initialiser_runs_and_random_numbers_are_left_alone(models):
    before = torch.get_rng_state()
    load_components(models["2B"])
    assert torch.equal(before, torch.get_rng_state())


def test_roles_come_in_the_order_of_loading_and_only_those_that_are_asked(models):
    assert load_components(models["5B"]).roles == COGVIDEOX_ROLES
    assert load_components(models["5B"], roles=["vae", "tokenizer"]).roles == ("tokenizer", "vae")
    assert load_components(models["5B"], roles="vae").roles == ("vae",)
    assert set(COGVIDEOX_ROLES) < set(ROLES)


def test_only_what_is_asked_is_checked(model):
    for role in ("text_encoder", "transformer", "tokenizer", "scheduler"):
        (model / role / "config.json").write_text("{broken")
        for file in (model / role).glob("*.safetensors"):
            file.write_bytes(b"hostile")
    assert load_components(model, roles=["vae"]).vae is not None


@pytest.mark.parametrize("named", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_the_scheduler_is_always_the_dpm_one_with_the_folders_values(model, edit_json, named):
    edit_json(model / "model_index.json", scheduler=["diffusers", named])
    edit_json(model / "scheduler" / "scheduler_config.json", _class_name=named)
    scheduler = load_components(model, roles=["scheduler"]).scheduler
    assert type(scheduler).__name__ == "CogVideoXDPMScheduler"
    assert scheduler.config.snr_shift_scale == 3.0
    assert scheduler.config.timestep_spacing == "trailing"


def test_the_tokenizer_is_that_of_the_folder(models):
    ours = load_components(models["5B"], roles=["tokenizer"]).tokenizer
    reference = T5Tokenizer.from_pretrained(models["5B"] / "tokenizer")
    assert ours("a red star moves bad").input_ids == reference("a red star moves bad").input_ids


def test_facts_are_read_from_configs_whichever_roles_are_loaded(models):
    facts = load_components(models["1.5"], roles=["tokenizer"]).facts
    assert (facts.default_frames, facts.num_text_tokens, facts.patch_size_t, facts.scaling_factor) == (17, 8, 2, 0.7)
    whole = load_components(models["1.5"], roles=["transformer", "vae"])
    assert whole.facts == facts
    whole.release("transformer", "vae")
    assert whole.facts == facts


@pytest.mark.parametrize("kind", ["5B", "2B"])
def test_the_pipeline_is_the_stock_one_and_draws_what_stock_draws(models, kind):
    reference = CogVideoXPipeline.from_pretrained(models[kind], dtype=torch.bfloat16)
    reference.scheduler = CogVideoXDPMScheduler.from_config(reference.scheduler.config)
    ours = load_components(models[kind]).pipeline()
    assert type(ours) is CogVideoXPipeline

    def draw(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "max_sequence_length": 8, "output_type": "latent", "generator": generator}
        return pipeline("a red star", height=32, width=32, num_frames=9, **options).frames

    assert torch.equal(draw(ours), draw(reference))


def test_released_parts_are_really_gone_and_say_so(models):
    parts = load_components(models["5B"])
    ghosts = [weakref.ref(parts.text_encoder), weakref.ref(parts.vae), weakref.ref(next(parts.vae.parameters()))]
    parts.release("text_encoder", "vae")
    assert [ghost() for ghost in ghosts] == [None] * 3
    gc.collect()
    assert not mapped_ranges(models["5B"] / "vae")
    assert parts.roles == ("tokenizer", "transformer", "scheduler")
    with pytest.raises(ComponentError, match=r"vae of .* was released; load it again with .*roles=\['vae'\]"):
        _ = parts.vae
    with pytest.raises(ComponentError, match="needs text_encoder, vae"):
        parts.pipeline()
    parts.release("vae", "unet")


def test_a_role_that_was_not_asked_says_how_to_ask(models):
    parts = load_components(models["5B"], roles=["vae"])
    with pytest.raises(ComponentError, match=r"transformer of .* was not loaded; ask for it with .*'transformer'"):
        _ = parts.transformer
    with pytest.raises(ComponentError, match="CogVideoXPipeline needs tokenizer, text_encoder, transformer, scheduler"):
        parts.pipeline()
    with pytest.raises(ConfigError, match=r"'encoder' is no role"):
        parts.release("encoder")


def test_the_report_is_a_table_of_what_was_loaded(models):
    parts = load_components(models["5B"])
    assert [part.role for part in parts.report.parts] == list(COGVIDEOX_ROLES)
    by_role = {part.role: part for part in parts.report.parts}
    assert by_role["vae"].num_parameters == sum(tensor.numel() for tensor in parts.vae.parameters())
    assert by_role["vae"].size_bytes == 2 * by_role["vae"].num_parameters
    assert by_role["vae"].dtypes == (torch.bfloat16,)
    lines = str(parts.report).splitlines()
    assert lines[0].split() == ["role", "class", "dtype", "parameters", "bytes", "seconds", "source"]
    assert [line.split()[0] for line in lines[1:]] == list(COGVIDEOX_ROLES)


def test_a_role_can_come_from_elsewhere(models, tmp_path):
    other = models["2B"]
    base = models["5B"]
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    for path in (other, other / "vae", weights):
        parts = load_components(base, roles=["vae"], paths={"vae": path})
        same_state(parts.vae, theirs(other, "vae", dtype=torch.bfloat16))
        assert parts.report.parts[0].source == weights
    foreign = load_components(base, roles=["scheduler"], paths={"transformer": models["1.5"] / "transformer"})
    assert foreign.facts.patch_size_t == 2


def test_bundles_of_one_model_join(models):
    transformer = load_components(models["5B"], roles=["transformer"])
    joined = load_components(models["5B"], roles=["vae", "scheduler"]).joined(transformer)
    assert set(joined.roles) == {"transformer", "vae", "scheduler"}
    assert joined.transformer is transformer.transformer
    assert {part.role for part in joined.report.parts} == set(joined.roles)


def test_a_fingerprint_is_of_weights_settings_and_words_and_not_of_files(model, models, edit_json):
    before = {role: fingerprint_of(model, role) for role in COGVIDEOX_ROLES}
    assert len(set(before.values())) == 5
    assert {role: fingerprint_of(models["5B"], role) for role in COGVIDEOX_ROLES} == before

    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    transformer = theirs(model, "transformer", dtype=torch.bfloat16)
    file.unlink()
    transformer.save_pretrained(model / "transformer", max_shard_size="8KB")
    edit_json(model / "transformer" / "config.json", _diffusers_version="0.1")
    (model / "tokenizer" / ".DS_Store").write_bytes(b"icons")
    assert fingerprint_of(model, "tokenizer") == before["tokenizer"]
    assert fingerprint_of(model, "transformer") == before["transformer"]

    edit_json(model / "vae" / "config.json", scaling_factor=0.8)
    pieces = model / "tokenizer" / "tokenizer.json"
    pieces.write_text(pieces.read_text().replace("star", "moon"))
    weights = model / "text_encoder" / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    changed = {role for role in COGVIDEOX_ROLES if fingerprint_of(model, role) != before[role]}
    assert changed == {"vae", "tokenizer", "text_encoder"}


def test_a_stable_diffusion_folder_has_a_unet_in_place_of_a_transformer(tmp_path):
    unet, vae, text = build_unet(), build_still_vae(), build_clip()
    parts = {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": EulerDiscreteScheduler()}
    for role, part in parts.items():
        part.save_pretrained(tmp_path / role)
    index = {role: [type(part).__module__.split(".")[0], type(part).__name__] for role, part in parts.items()}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))

    loaded = load_components(tmp_path)
    assert loaded.roles == ("text_encoder", "unet", "vae", "scheduler")
    same_state(loaded.unet, unet)
    same_state(loaded.vae, vae)
    same_state(loaded.text_encoder, text)
    assert type(loaded.scheduler) is EulerDiscreteScheduler
    assert (loaded.facts.default_height, loaded.facts.model_class) == (64, "UNet2DConditionModel")
    assert torch.equal(loaded.text_encoder(torch.arange(4)[None])[0], text.eval()(torch.arange(4)[None])[0])
    with pytest.raises(ComponentError, match="StableDiffusionPipeline needs tokenizer"):
        loaded.pipeline()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionInpaintPipeline", **index}))
    with pytest.raises(ComponentError, match="StableDiffusionInpaintPipeline; what can be run is CogVideoX"):
        load_components(tmp_path).pipeline()


def test_clip_files_from_before_transformers_5_are_read(tmp_path):
    """They spell ``text_model.`` before every name and hold a buffer that is computed now."""
    text = build_clip()
    text.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"embeddings.position_ids": torch.arange(77)[None]}
    save_file({f"text_model.{name}": tensor for name, tensor in state.items()}, tmp_path / "model.safetensors")
    loaded = load_components(tmp_path, roles=["text_encoder"], paths={"text_encoder": tmp_path}).text_encoder
    same_state(loaded, text)
