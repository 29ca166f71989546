"""A session that samples as SAT does."""

import shutil
from typing import Any

import pytest
import torch
from oracle import GOLDEN
from sat import base_of, yamls
from tiny_models import NUM_TEXT_TOKENS

from reelora.components import encode_prompts, load_components
from reelora.errors import ConfigError
from reelora.generate import Session, read_video_metadata
from reelora.lora import base_fingerprints
from reelora.pocket import MODEL, judge
from reelora.tensorio import open_checkpoint, write_checkpoint

SAT: dict[str, Any] = {"sampling": "sat", "steps": 2, "height": 16, "width": 16}


def difference(one, other):
    return (one.frames.int() - other.frames.int()).abs().max().item()


@pytest.fixture
def calls(parts):
    """What the transformer was called with."""
    seen = []
    parts.transformer.register_forward_pre_hook(lambda module, inputs, kwargs: seen.append(kwargs), with_kwargs=True)
    return seen


def test_guidance_leads_away_from_zeros_and_the_text_encoder_is_never_asked_for_the_empty_prompt(parts, calls):
    states = encode_prompts(parts, ["a star"]).states
    parts.release("tokenizer", "text_encoder")
    Session.of(parts, prompt_states={"a star": states[0]}).generate("a star", **SAT)
    for call in calls:
        without, with_prompt = call["encoder_hidden_states"].chunk(2)
        assert without.shape == (1, NUM_TEXT_TOKENS, 16)
        assert not without.any()
        assert torch.equal(with_prompt, states)


def test_the_first_noise_is_that_of_diffusers(parts, calls):
    for sampling in ("diffusers", "sat"):
        Session.of(parts).generate("a star", seed=3, **{**SAT, "sampling": sampling})
    assert torch.equal(calls[0]["hidden_states"], calls[2]["hidden_states"])
    assert [int(call["timestep"][0]) for call in calls[2:]] == [999, 499]


def test_without_guidance_each_step_is_half_the_work(parts, calls):
    session = Session.of(parts)
    session.generate("a star", guidance=1, guidance_schedule="constant", **SAT)
    session.generate("a star", guidance=1, **SAT)  # CogVideo's own schedule goes up to 1 + guidance
    assert [len(call["hidden_states"]) for call in calls] == [1, 1, 2, 2]


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
def test_a_video_depends_on_its_own_seed_only(parts, scheduler):
    session = Session.of(parts)
    first, second, third = session.generate(["a star", "a red star", "a star"], seed=(7, 8, 7), scheduler=scheduler, **SAT)
    assert difference(first, third) == 0
    [batch, _, _] = session.generate(
        ["a star", "a red star", "a star"], seed=(7, 8, 9), scheduler=scheduler, batch_size=3, **SAT
    )
    assert difference(first, batch) <= 1  # sums in another order
    assert difference(first, second) > 10


def test_a_model_that_was_not_trained_by_sat_makes_what_it_is_asked_for():
    wanted = judge(
        Session(MODEL).generate("a red circle moves left on a grey background", sampling="sat", steps=8).frames.numpy()
    )
    assert (wanted.shape, wanted.colour, wanted.motion) == ("circle", "red", "moves left")


def test_videos_of_diffusers_are_what_they_were_before_and_after(folder, parts):
    expected = Session(folder).generate("a star", steps=2)
    session = Session.of(parts)
    sat = session.generate("a star", sampling="sat", steps=2)
    assert difference(session.generate("a star", steps=2), expected) == 0
    assert difference(sat, expected) > 10


def test_adapters_act_and_every_step_is_counted(parts, adapter):
    session, seen = Session.of(parts), []
    acted = session.generate(
        "a star", adapters={"it": (adapter, 1.0)}, on_step=lambda step, total: seen.append((step, total)), **SAT
    )
    assert seen == [(1, 2), (2, 2)]
    assert difference(acted, session.generate("a star", **SAT)) > 10


def test_a_clip_of_15_has_four_frames_for_each_latent_one_and_says_so(folders):
    clip = Session(folders["1.5"]).generate("a star", **SAT)
    assert len(clip.frames) == 20
    assert clip.notes == ("SAT's decoder makes 20 frames of the 17 that were asked for",)


def test_a_clip_of_10_has_as_many_frames_as_were_asked_for(folders):
    for kind in ("2B", "5B"):
        clip = Session(folders[kind]).generate("a star", **SAT)
        assert (len(clip.frames), clip.notes) == (9, ())


def test_metadata_say_how_a_video_was_sampled(session, tmp_path):
    [path] = session.generate("a star", **SAT).save(tmp_path / "star.mp4")
    told = read_video_metadata(path)
    expected = {"sampling": "sat", "scheduler": "dpm", "guidance_schedule": "dynamic", "guidance_exponent": 5, "guidance": 6.0}
    assert {key: told[key] for key in expected} == expected
    assert "negative_prompt" not in told
    stock = session.generate("a star", **SAT | {"sampling": "diffusers"}).metadata
    assert stock["sampling"] == "diffusers"
    assert stock["guidance_schedule"] == "constant"
    assert "guidance_exponent" not in stock


def test_a_model_with_noise_of_another_kind_is_refused(folder, tmp_path, edit_scheduler):
    copy = shutil.copytree(folder, tmp_path / "model")
    edit_scheduler(copy, rescale_betas_zero_snr=False)
    with pytest.raises(ConfigError, match=r"rescale_betas_zero_snr is False, not True.*sampling='diffusers'"):
        Session(copy).generate("a star", **SAT)


def test_a_large_clip_is_decoded_whole(tmp_path, parts, monkeypatch):
    """As SAT does it; the tiles of diffusers would be seen in the numbers."""
    session = Session.of(parts)
    size: dict[str, Any] = {"sampling": "sat", "steps": 2}
    whole = session.generate("a star", **size)
    parts.vae.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=16)
    assert difference(session.generate("a star", **size), whole) == 0
    assert "vae_tiling" not in whole.metadata
    assert parts.vae.use_tiling


# ---- from a SAT checkpoint


@pytest.fixture
def sat_parts(tmp_path):
    return load_components(base_of("t2v_2b", tmp_path / "base"), roles=["transformer", "scheduler"], sat_config=yamls("t2v_2b"))


def test_a_sat_checkpoint_is_told_by_the_values_that_adapters_store(sat_parts):
    told = Session.of(sat_parts).fingerprint
    assert told == base_fingerprints(sat_parts.transformer)["base_values"]
    with_lora = load_components(GOLDEN / "t2v_2b_lora" / "transformer", roles=["transformer"], sat_config=yamls("t2v_2b_lora"))
    assert Session.of(with_lora).fingerprint == told


def test_other_weights_in_the_same_session_have_another_fingerprint(sat_parts, tmp_path):
    session = Session.of(sat_parts)
    before = session.fingerprint
    stored = open_checkpoint(tmp_path / "base" / "1" / "mp_rank_00_model_states.pt").under("module")
    (tmp_path / "tuned").mkdir()
    write_checkpoint(tmp_path / "tuned" / "tuned.pt", {"module": {name: stored[name] * 1.5 for name in stored}})
    sat_parts.load_weights(tmp_path / "tuned" / "tuned.pt")
    assert session.fingerprint != before
    sat_parts.load_weights(tmp_path / "base")
    assert session.fingerprint == before


def test_a_session_passes_on_where_its_model_and_its_parts_come_from(folders):
    checkpoint, other = GOLDEN / "t2v_2b_lora" / "transformer", Session(folders["5B"], paths={"transformer": folders["2B"]})
    assert Session(checkpoint, sat_config=yamls("t2v_2b_lora")).facts.num_text_tokens == 16
    assert not other.parts.transformer.config.use_rotary_positional_embeddings


def test_sampling_as_sat_takes_steps_scheduler_and_guidance_from_the_yaml_unless_they_are_given(sat_parts):
    session = Session.of(sat_parts)
    told = session.config(sampling="sat", steps=7)
    assert (told.steps, told.scheduler, told.guidance_schedule, told.guidance) == (7, "dpm", "dynamic", 6)
    assert session.config(sampling="sat").steps == 5
    assert session.config().steps == session.facts.default_steps
