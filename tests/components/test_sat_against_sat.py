"""Loaded SAT checkpoints against SAT itself: the same output, loss and gradients."""

from pathlib import Path

import pytest
import torch
from oracle import GOLDEN, oracle_folders
from sat import LORAS, base_of, deepspeed, largest_error, load_case, positions, recording, yamls

import reelora
from reelora.components import load_components
from reelora.lora import Rack, TrainableLinear
from reelora.tensorio import open_checkpoint, open_tensors, same_bytes
from reelora.train import Diffusion

BASES = ("t2v_2b", "t2v_5b", "i2v_5b")
TOLERANCE = 2e-6
"""Outputs of order 3 in float32; SAT and diffusers sum in another order."""
FINETUNED = "t2v_2b_finetune_lora"


@pytest.mark.parametrize("variant", ["a", "b", "c"])
@pytest.mark.parametrize("case", [*BASES, *LORAS.values()])
def test_the_loaded_transformer_gives_sats_output_for_clips_of_any_length(case, variant, tmp_path):
    parts = load_case(case, tmp_path / "base")
    assert largest_error(parts.transformer, recording(case), variant) < TOLERANCE


@pytest.mark.parametrize("case", BASES)
def test_a_loaded_transformer_is_frozen_and_evaluating(case, tmp_path):
    model = load_case(case, tmp_path / "base").transformer
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["b", "c"])
def test_diffusers_own_table_of_sines_is_far_off_where_sat_learned_one(variant, tmp_path):
    model = load_case("i2v_5b", tmp_path).transformer
    stock = reelora.load_components(_as_diffusers(model, tmp_path / "stock"), roles=["transformer"]).transformer
    assert largest_error(stock, recording("i2v_5b"), variant) > 1
    assert largest_error(model, recording("i2v_5b"), variant) < TOLERANCE


def _as_diffusers(model, folder: Path) -> Path:
    model.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text('{"transformer": ["diffusers", "CogVideoXTransformer3DModel"]}')
    return folder


@pytest.mark.parametrize(("case", "alpha"), [("t2v_2b_lora", 1), ("t2v_5b_lora_a8", 8)])
def test_a_lora_comes_with_its_true_scale_and_can_be_taken_off(case, alpha, tmp_path):
    parts = load_case(case, tmp_path)
    assert parts.adapter is not None
    assert {pair.scale for pair in parts.adapter.pairs.values()} == {alpha / 4}
    reelora.detach(parts.transformer)
    base = next(base for base, lora in LORAS.items() if lora == case)
    assert largest_error(parts.transformer, recording(base), "a") < TOLERANCE


@pytest.mark.parametrize("case", LORAS.values())
def test_a_lora_that_is_merged_into_the_weights_gives_the_same(case, tmp_path):
    parts = load_case(case, tmp_path)
    reelora.detach(parts.transformer)
    rack = Rack(parts.transformer)
    assert parts.adapter is not None
    rack.load("its own", parts.adapter)
    rack.activate({"its own": 1.0})
    rack.fuse()
    assert largest_error(parts.transformer, recording(case), "a") < TOLERANCE


@pytest.mark.parametrize("folder", oracle_folders("t2v_2b_lora"))
def test_what_sat_merged_itself_gives_the_same(folder):
    parts = load_components(folder / "transformer_merged", roles=["transformer"], sat_config=yamls("t2v_2b"))
    assert largest_error(parts.transformer, recording("t2v_2b_lora"), "a") < TOLERANCE


def test_a_scale_that_the_yaml_does_not_say_is_said_to_be_sats_default(tmp_path):
    adapter = load_case("t2v_2b_lora", tmp_path).adapter
    assert adapter is not None
    assert "no lora_alpha, so SAT's 1" in adapter.scale_source


def test_shards_are_merged_bit_for_bit(tmp_path):
    config = yamls("t2v_2b")
    whole = load_components(base_of("t2v_2b", tmp_path), roles=["transformer"], sat_config=config).transformer.state_dict()
    shards = load_components(GOLDEN / "t2v_2b_mp2" / "transformer", roles=["transformer"], sat_config=config)
    merged = shards.transformer.state_dict()
    assert whole.keys() == merged.keys()
    assert all(same_bytes(whole[name], merged[name]) for name in whole)
    assert same_bytes(*(_table(model) for model in (shards.transformer, load_case("t2v_2b", tmp_path / "again").transformer)))


def _table(model):
    return model.patch_embed.pos_embedding


def test_a_fine_tune_by_deepspeed_gives_sats_output_with_its_stored_table(tmp_path):
    config = [GOLDEN / FINETUNED / name for name in ("model.yaml", "sft.yaml")]
    parts = load_components(deepspeed(tmp_path), roles=["transformer"], sat_config=config, dtype=torch.float32)
    latents, recorded = "a.latent", recording(FINETUNED)
    assert latents in recorded
    # No time embedding was recorded: at its timesteps the last bit of exp() costs 4e-6.
    assert largest_error(parts.transformer, recorded, "a") < 3 * TOLERANCE
    stored = open_checkpoint(tmp_path / "2" / "mp_rank_00_model_states.pt")
    table = stored["module.model.diffusion_model.mixins.pos_embed.pos_embedding"]
    assert table.dtype == torch.bfloat16
    assert same_bytes(_table(parts.transformer), table.float())


def test_text_encoder_and_vae_come_out_of_a_fine_tune_although_no_folder_is_there(tmp_path):
    parts = load_components(
        deepspeed(tmp_path), roles=["text_encoder", "vae", "scheduler"], sat_config=GOLDEN / FINETUNED / "model.yaml"
    )
    recorded = recording(FINETUNED)
    assert {str(parameter.dtype) for parameter in parts.text_encoder.parameters()} == {"torch.bfloat16"}
    with torch.no_grad():
        states = parts.text_encoder.float()(recorded["t5.input_ids"])[0]
    assert torch.allclose(states, recorded["t5.embedding"], atol=1e-6)
    assert parts.vae.config.latent_channels == 16
    assert parts.scheduler.config.snr_shift_scale == 3.0


@pytest.mark.parametrize("folder", oracle_folders(FINETUNED))
def test_the_tokenizer_of_a_bare_sentence_piece_model_gives_sats_tokens(folder):
    tokenizer = load_components(folder / "ckpts", roles=["tokenizer"], sat_config=folder / "model.yaml").tokenizer
    recorded = recording(FINETUNED)["t5.input_ids"]
    assert tokenizer.decode(recorded[0], skip_special_tokens=True)
    again = tokenizer(tokenizer.decode(recorded[0], skip_special_tokens=True), padding="max_length", max_length=16)
    assert again.input_ids == recorded[0].tolist()


@pytest.mark.parametrize("case", [*BASES, *LORAS.values()])
def test_loss_and_gradients_are_sats(case, tmp_path):
    parts = load_components(
        GOLDEN / case / "transformer" if case in LORAS.values() else base_of(case, tmp_path),
        roles=["transformer", "scheduler"],
        sat_config=yamls(case),
    )
    model, recorded = parts.transformer, open_tensors(GOLDEN / "losses" / f"{case}.safetensors")
    branches = {path: branch for path, branch in model.named_modules() if isinstance(branch, TrainableLinear)}
    for branch in branches.values():
        branch.lora_a.requires_grad_(True)
        branch.lora_b.requires_grad_(True)
    loss = velocity_loss(model, Diffusion.of(parts.scheduler), recorded)
    assert float(loss.detach().mean()) == pytest.approx(float(recorded["loss_mean"]), rel=1e-6)
    if branches:
        loss.mean().backward()
        for path, branch in branches.items():
            for side, matrix in (("A", branch.lora_a), ("B", branch.lora_b)):
                wanted = recorded[f"grad.{theirs(path, side)}"]
                assert matrix.grad is not None
                assert float((matrix.grad - wanted).norm() / wanted.norm()) < 1e-5


def velocity_loss(model, diffusion, recorded):
    """The mean squared error of the velocity, which equals SAT's weighted one of the clip."""
    noisy = diffusion.noisy(recorded["latent"], recorded["noise"], recorded["idx"])
    inputs = torch.cat([noisy, *([recorded["concat_images"]] if "concat_images" in recorded else [])], dim=2)
    predicted = model(inputs, recorded["context"], recorded["idx"], **positions(model, inputs), return_dict=False)[0]
    wanted = diffusion.velocity(recorded["latent"], recorded["noise"], recorded["idx"])
    return (predicted - wanted).square().flatten(1).mean(1)


def theirs(path: str, side: str) -> str:
    layer, leaf = path.split(".")[1], path.split("attn1.")[1]
    part = f"query_key_value.matrix_{side}.{'qkv'.index(leaf[-1])}" if leaf != "to_out.0" else f"dense.matrix_{side}.0"
    return f"model.diffusion_model.transformer.layers.{layer}.attention.{part}"


@pytest.mark.parametrize("folder", oracle_folders("vae"))
def test_the_loaded_vae_encodes_and_decodes_as_sat_where_it_takes_the_same_chunks(folder):
    vae = load_components(folder / "vae" / "3d-vae.pt", roles=["vae"], sat_config=folder / "model_v10.yaml").vae
    recorded = open_tensors(folder / "reference_v10.safetensors")
    vae.num_sample_frames_batch_size = 32
    with torch.no_grad():
        for clip in ("img1f", "vid9f", "vid17f"):
            moments = vae.encode(recorded[f"{clip}.pixels"]).latent_dist.parameters
            assert float((moments - recorded[f"{clip}.moments"]).abs().max()) < 2e-5
        chunked = vae.decode(recorded["chunk5.z"]).sample
        assert float((chunked - recorded["chunk5.decode_chunked"]).abs().max()) < 2e-5
        vae.num_latent_frames_batch_size = 32
        for clip in ("lat1", "lat3", "lat4", "lat5"):
            whole = vae.decode(recorded[f"{clip}.z"]).sample
            assert float((whole - recorded[f"{clip}.decode_whole"]).abs().max()) < 2e-5
