"""A session makes what the stock pipeline makes, with adapters, and leaves the model as it was."""

import gc
import shutil
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from tiny_models import NUM_TEXT_TOKENS, build_pipeline

from reelora.adapters import LoraSpec, Pair, content_hash, write_adapter
from reelora.components import encode_prompts, load_components, tiling
from reelora.errors import ComponentError, ConfigError, MismatchError, UnknownScaleError
from reelora.generate import Session, StoppedError, read_video_metadata, to_mp4_bytes
from reelora.lora import attach, collect
from reelora.tensorio import fingerprint

QUICK: dict[str, Any] = {"steps": 2}
SIZES = {"2B": 9, "5B": 9, "1.5": 17}

ROUNDING = 1
"""Levels of 255: float32 sums in another order (a batch, a branch inside or outside a model) move a pixel over one border."""


def difference(one, other):
    return (one.frames.int() - other.frames.int()).abs().max().item()


def load_stock(folder) -> Any:
    """The pipeline that diffusers loads itself."""
    pipeline = CogVideoXPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_frames(folder, prompts, seeds, **settings):
    pipeline = load_stock(folder)
    videos = [
        pipeline(
            prompt=prompt,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=NUM_TEXT_TOKENS,
            output_type="np",
            **settings,
        ).frames[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return [torch.from_numpy((video * 255).round().astype("uint8")) for video in videos]


def state_of(model):
    """Every module object, its mode, and every bit of the weights."""
    return [(name, id(module), module.training) for name, module in model.named_modules()], fingerprint(model.state_dict())


# ---- as the stock pipeline


@pytest.mark.parametrize("kind", SIZES)
def test_videos_equal_those_of_stock_diffusers_bit_for_bit(folders, kind):
    prompts = ["a red star moves", "a star"]
    clips = Session(folders[kind]).generate(prompts, seed=4, steps=3, guidance=5.0, negative_prompt="a red")
    size = {"num_frames": SIZES[kind], "height": 32, "width": 32}
    expected = stock_frames(
        folders[kind], prompts, [4, 5], num_inference_steps=3, guidance_scale=5.0, negative_prompt="a red", **size
    )
    assert [clip.frames.shape for clip in clips] == [(SIZES[kind], 32, 32, 3)] * 2
    assert all(torch.equal(clip.frames, frames) for clip, frames in zip(clips, expected, strict=True))


def test_videos_without_guidance_equal_those_of_stock_diffusers_bit_for_bit(folder, session):
    clip = session.generate("a star", steps=2, guidance=1, height=16, width=16)
    size = {"num_frames": 9, "height": 16, "width": 16}
    [expected] = stock_frames(folder, ["a star"], [0], num_inference_steps=2, guidance_scale=1.0, **size)
    assert torch.equal(clip.frames, expected)


def test_a_folder_with_leading_timesteps_is_sampled_with_trailing_ones(folder, tmp_path, edit_scheduler):
    copy = shutil.copytree(folder, tmp_path / "model")
    edit_scheduler(copy, timestep_spacing="leading")
    assert difference(Session(copy).generate("a star", **QUICK), Session(folder).generate("a star", **QUICK)) == 0


def test_parts_may_differ_in_precision(folder):
    parts = load_components(folder, dtype={"text_encoder": torch.bfloat16, "transformer": torch.bfloat16, "vae": torch.float32})
    clip = Session.of(parts).generate("a star", **QUICK)
    assert clip.metadata["dtype"] == "bfloat16"
    assert clip.frames.float().std() > 1


def test_a_portrait_of_15_is_made_and_a_landscape_equals_that_of_stock_diffusers_bit_for_bit(tmp_path):
    """Stock dies of a portrait: it slices the table of the trained landscape, which has fewer rows."""
    build_pipeline("1.5", sample_height=4, sample_width=8).save_pretrained(tmp_path)
    session = Session(tmp_path)
    clip = session.generate("a star", height=64, width=32, **QUICK)
    assert clip.frames.shape == (17, 64, 32, 3)
    landscape = {"num_frames": 17, "height": 32, "width": 64}
    [expected] = stock_frames(tmp_path, ["a star"], [0], num_inference_steps=2, guidance_scale=6.0, **landscape)
    assert torch.equal(session.generate("a star", **landscape, **QUICK).frames, expected)


def test_a_large_clip_is_decoded_in_tiles_and_says_so(tmp_path, monkeypatch):
    build_pipeline(sample_height=8, sample_width=8).save_pretrained(tmp_path)
    session = Session.of(load_components(tmp_path))
    whole = session.generate("a star", **QUICK)
    monkeypatch.setattr(tiling, "MOST_PIXELS", 0)
    in_tiles = session.generate("a star", **QUICK)
    assert in_tiles.metadata == {**whole.metadata, "vae_tiling": True}
    assert whole.frames.shape == in_tiles.frames.shape == (9, 64, 64, 3)
    assert difference(whole, in_tiles) > 0
    assert not session.parts.vae.use_tiling
    assert "vae_tiling" not in session.generate("a star", height=32, width=32, **QUICK).metadata


# ---- seeds and batches


def test_a_string_gives_a_clip_and_a_list_gives_a_list(session):
    assert session.generate("a star", **QUICK).fps == session.facts.fps
    assert [clip.metadata["prompt"] for clip in session.generate(["a star"], **QUICK)] == ["a star"]


def test_a_video_depends_on_its_own_seed_only(session):
    first, second, third = session.generate(["a star", "a red star", "a star"], seed=(7, 8, 7), **QUICK)
    assert difference(first, third) == 0
    assert difference(first, session.generate("a star", seed=7, **QUICK)) == 0
    assert difference(second, session.generate("a red star", seed=8, **QUICK)) == 0
    assert difference(first, session.generate("a star", seed=8, **QUICK)) > 10 * ROUNDING


def test_a_batch_gives_the_single_videos_within_rounding(session):
    prompts = ["a star", "a red star", "a star moves"]
    singles = session.generate(prompts, seed=1, **QUICK)
    batch = session.generate(prompts, seed=1, batch_size=2, **QUICK)
    assert [clip.metadata["batch_size"] for clip in batch] == [2, 2, 1]
    assert all(difference(one, other) <= ROUNDING for one, other in zip(singles, batch, strict=True))
    assert difference(singles[2], batch[2]) == 0


def test_generating_leaves_the_global_random_state_alone(session):
    before = torch.get_rng_state()
    session.generate("a star", **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


# ---- adapters


def test_an_adapter_acts_by_its_strength_and_leaves_the_model_as_it_was(parts, adapter):
    session = Session.of(parts)
    before = state_of(parts.transformer)
    base = session.generate("a star", **QUICK)
    full = session.generate("a star", adapters={"style": (adapter, 1.0)}, **QUICK)
    half = session.generate("a star", adapters={"style": (adapter, 0.5)}, **QUICK)
    off = session.generate("a star", adapters={"style": (adapter, 0)}, **QUICK)
    assert min(difference(base, full), difference(base, half), difference(half, full)) > 10 * ROUNDING
    assert difference(base, off) == 0
    assert difference(base, session.generate("a star", **QUICK)) == 0
    assert state_of(parts.transformer) == before


def test_two_adapters_act_as_the_one_that_is_their_sum(session, adapter, make_adapter):
    other = make_adapter(seed=5)
    both = session.generate("a star", adapters={"one": (adapter, 0.7), "two": (other, -0.3)}, **QUICK)
    summed = {
        name: Pair(
            torch.cat([pair.a, other.pairs[name].a]),
            torch.cat([0.7 * 0.5 * pair.b, -0.3 * 0.5 * other.pairs[name].b], dim=1),
            1.0,
        )
        for name, pair in adapter.pairs.items()
    }
    one = replace(adapter, pairs=summed, spec=None)
    assert difference(both, session.generate("a star", adapters={"sum": (one, 1)}, **QUICK)) <= ROUNDING


def test_a_file_acts_as_the_adapter_that_was_written_to_it_and_stock_diffusers_agrees(session, adapter, folder, tmp_path):
    write_adapter(adapter, tmp_path / "style.safetensors")
    from_memory = session.generate("a star", adapters={"style": (adapter, 1.0)}, **QUICK)
    from_file = session.generate("a star", adapters={tmp_path / "style.safetensors": 1.0}, **QUICK)
    assert difference(from_memory, from_file) == 0
    [told] = from_file.metadata["adapters"]
    assert told.pop("file") == str(tmp_path / "style.safetensors")
    assert from_memory.metadata == from_file.metadata
    pipeline = load_stock(folder)
    pipeline.load_lora_weights(tmp_path / "style.safetensors")
    draw = torch.Generator().manual_seed(0)
    size = {"num_frames": 9, "height": 32, "width": 32}
    stock = pipeline("a star", num_inference_steps=2, generator=draw, max_sequence_length=8, output_type="np", **size)
    expected = torch.from_numpy((stock.frames[0] * 255).round().astype("uint8"))
    assert difference(from_file, replace(from_file, frames=expected)) <= ROUNDING


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
def test_whatever_ends_a_call_the_model_is_as_it_was(parts, adapter, failure):
    parts.transformer.train()
    before = state_of(parts.transformer)

    def fail(step, total):
        raise failure

    with pytest.raises(failure):
        Session.of(parts).generate("a star", adapters={"style": (adapter, 1.0)}, on_step=fail, **QUICK)
    assert state_of(parts.transformer) == before


def test_adapters_that_cannot_be_used_are_refused_before_the_first_step(session, adapter):
    steps = []
    unknown = replace(adapter, pairs={name: Pair(pair.a, pair.b, None) for name, pair in adapter.pairs.items()}, spec=None)
    foreign = replace(adapter, pairs={"transformer.transformer_blocks.30.attn1.to_q": next(iter(adapter.pairs.values()))})
    wrongs: list[tuple[type[Exception], Any]] = [
        (UnknownScaleError, {"style": (unknown, 1.0)}),
        (MismatchError, {"style": (foreign, 1.0)}),
        (ConfigError, {"style": (adapter, float("nan"))}),
        (ConfigError, {"style": adapter}),
        (ConfigError, {"style": True}),
        (FileNotFoundError, {"missing.safetensors": 1.0}),
    ]
    for error, adapters in wrongs:
        with pytest.raises(error):
            session.generate("a star", adapters=adapters, on_step=lambda *step: steps.append(step), **QUICK)
    assert not steps


def test_a_video_that_overflows_is_an_error_and_not_a_black_clip(session, adapter):
    with pytest.raises(ConfigError, match=r"became NaN or infinite \(sampled in torch\.float32"):
        session.generate("a star", adapters={"style": (adapter, 1e38)}, **QUICK)


# ---- while an adapter is being trained


def test_a_preview_shows_the_adapter_in_training_and_does_not_touch_it(parts, folder):
    transformer = parts.transformer
    attach(transformer, LoraSpec(rank=4, alpha=4, dropout=0.5), seed=1)
    transformer.train()
    transformer.transformer_blocks[0].norm1.eval()
    for name, parameter in transformer.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
            parameter.grad = torch.ones_like(parameter)
    before = state_of(transformer)
    preview = Session.of(parts).generate("a star", **QUICK)
    assert state_of(transformer) == before
    assert all(p.grad is None or (p.grad == 1).all() for p in transformer.parameters())
    after = Session(folder).generate("a star", adapters={"it": (collect(transformer), 1.0)}, **QUICK)
    assert difference(preview, after) <= ROUNDING
    assert difference(after, Session(folder).generate("a star", **QUICK)) > 10 * ROUNDING


def test_known_prompt_states_need_no_text_encoder(folder, parts, session):
    texts = ["a star", ""]
    states = dict(zip(texts, [encode_prompts(parts, [text]).states[0] for text in texts], strict=True))
    bare = load_components(folder, roles=["transformer", "vae", "scheduler"])
    clip = Session.of(bare, prompt_states=states).generate("a star", **QUICK)
    assert difference(clip, session.generate("a star", **QUICK)) == 0
    with pytest.raises(ComponentError, match=r"text_encoder of .* was not loaded"):
        Session.of(bare, prompt_states=states).generate("a red star", **QUICK)


def test_prompt_states_of_another_model_are_refused(parts):
    states = {"a star": torch.zeros(226, 4096), "": torch.zeros(226, 4096)}
    with pytest.raises(ConfigError, match=r"\(226, 4096\).*\(8, 16\)"):
        Session.of(parts, prompt_states=states).generate("a star", **QUICK)


# ---- memory


def test_a_session_and_its_weights_are_freed_with_the_last_name_for_them(folder, adapter):
    """No cycle, that is: a collector that comes late would leave gigabytes on the device."""
    gc.collect()
    gc.disable()
    try:
        session = Session(folder)
        session.generate("a star", adapters={"style": (adapter, 1.0)}, **QUICK)
        ghosts = [weakref.ref(session), weakref.ref(session.parts)]
        ghosts += [weakref.ref(getattr(session.parts, role)) for role in ("text_encoder", "transformer", "vae")]
        del session
        assert [ghost() for ghost in ghosts] == [None] * len(ghosts)
    finally:
        gc.enable()


def test_prompts_that_come_back_are_encoded_once(parts):
    session, encoded = Session.of(parts), []
    parts.text_encoder.register_forward_hook(lambda *args: encoded.append(args))
    prompts = [f"a {'red ' * (index % 3)}star" for index in range(6)]
    session.generate(prompts, steps=1, batch_size=6)
    assert len(encoded) == 3 + 1  # and the negative prompt


# ---- prompts, progress, stopping


def test_words_that_the_model_does_not_read_are_noted_on_the_clip(session):
    long = "a red star moves a red star moves a red star"
    short_clip, long_clip = session.generate(["a star", long], **QUICK)
    assert short_clip.notes == ()
    assert len(long_clip.notes) == 1
    assert "prompt too long: 12 tokens, of which 8 are read" in long_clip.notes[0]
    [note] = session.generate("a star", negative_prompt=long, **QUICK).notes
    assert note.startswith("negative prompt too long")


def test_progress_counts_every_step_of_all_batches(session):
    seen = []
    session.generate(["a"] * 3, batch_size=2, steps=3, on_step=lambda step, total: seen.append((step, total)))
    assert seen == [(step, 6) for step in range(1, 7)]


def test_a_wish_to_stop_ends_between_two_steps_and_keeps_what_is_finished(parts, adapter):
    session, seen, finished = Session.of(parts), [], []
    before = state_of(parts.transformer)

    def count(step, total):
        seen.append(step)

    stream = session.stream(
        ["a star", "a red star"],
        session.config(steps=3),
        adapters={"style": (adapter, 1.0)},
        on_step=count,
        should_stop=lambda: len(seen) >= 4,
    )
    with pytest.raises(StoppedError, match="after 4 of 6 steps"):
        finished.extend(iter(stream.__next__, None))
    assert seen == [1, 2, 3, 4]
    assert state_of(parts.transformer) == before


@pytest.mark.parametrize("acts_as", ["branches", "fused"])
def test_a_stream_that_is_left_early_leaves_the_model_bare(parts, adapter, acts_as):
    session, before = Session.of(parts), state_of(parts.transformer)
    config = session.config(adapters_as=acts_as, **QUICK)
    stream = session.stream(["a", "a star"], config, adapters={"style": (adapter, 1.0)})
    next(stream)
    del stream
    assert state_of(parts.transformer) == before


def test_a_wish_to_stop_after_the_last_step_comes_too_late(session):
    seen = []
    clip = session.generate("a star", on_step=lambda *s: seen.append(s), should_stop=lambda: len(seen) == 2, **QUICK)
    assert len(clip.frames) == 9


# ---- refusals


def test_what_the_model_cannot_make_is_refused_before_its_weights_are_opened(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    session = Session(copy)
    with pytest.raises(ConfigError, match=r"num_frames is 10.*height is 33"):
        session.generate("a star", num_frames=10, height=33)
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        session.generate("a star", stesp=3)
    with pytest.raises(ConfigError, match="2 seeds for 1 videos"):
        session.generate("a star", seed=(1, 2))
    wrong_prompts: list[Any] = [[], [None]]
    for prompts in wrong_prompts:
        with pytest.raises(ConfigError, match="have to be texts, at least one"):
            session.generate(prompts)
    with pytest.raises(ComponentError, match="transformer"):
        session.generate("a star", **QUICK)


def test_a_model_that_needs_an_image_is_refused_before_its_weights_are_opened(folders, tmp_path):
    copy = shutil.copytree(folders["5B-I2V"], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match=r"takes 8 channels, its latents have 4.*conditioning image"):
        Session(copy).generate("a star")
    with pytest.raises(ConfigError, match="conditioning image"):
        Session.of(load_components(folders["5B-I2V"])).generate("a star")


# ---- metadata


def test_metadata_say_everything_that_the_video_came_from(session, adapter, tmp_path):
    clip = session.generate(
        ["a star"], seed=3, negative_prompt="a red", guidance=2.5, adapters={"style": (adapter, 0.8)}, **QUICK
    )[0]
    [path] = clip.save(tmp_path / "star.mp4")
    told = read_video_metadata(path)
    assert told["adapters"] == [{"name": "style", "content_hash": content_hash(adapter), "scales": [0.5], "strength": 0.8}]
    assert told["model"]["name"] == session.facts.name
    assert len(told["model"]["fingerprint"]) == 64
    plain = {"prompt": "a star", "negative_prompt": "a red", "seed": 3, "steps": 2, "guidance": 2.5, "reelora": "0.1.0"}
    plain |= {"num_frames": 9, "height": 32, "width": 32, "batch_size": 1, "dtype": "float32"}
    assert {key: told[key] for key in plain} == plain


def test_the_same_job_gives_the_same_file_in_another_session_and_another_queue(folder, adapter, tmp_path):
    settings: dict[str, Any] = {"seed": 5, "adapters": {"style": (adapter, 0.8)}, **QUICK}
    [alone] = Session(folder).generate("a star", **settings).save(tmp_path / "alone.mp4")
    queue = Session(folder).generate(["a red star", "a star"], **{**settings, "seed": (9, 5)})
    [queued] = queue[1].save(tmp_path / "queued.mp4")
    assert alone.read_bytes() == queued.read_bytes()


def test_a_small_clip_gives_the_same_bytes_however_often_it_is_written(session, adapter):
    """x264's macroblock tree reads unwritten memory in narrow frames, which differs where the heap is full of other things."""
    clip = session.generate("a star", seed=5, adapters={"style": (adapter, 0.8)}, **QUICK)
    draw, written = np.random.default_rng(0), set()
    for _ in range(12):
        litter = [draw.integers(256, size=draw.integers(100, 60_000), dtype=np.uint8) for _ in range(50)]
        written.add(to_mp4_bytes(clip.frames, fps=8))
        del litter
    assert len(written) == 1


def test_a_transformer_from_elsewhere_is_told_from_the_folders_own(folders):
    other = load_components(folders["5B"], paths={"transformer": folders["2B"]})
    clip = Session.of(other).generate("a star", **QUICK)
    own = Session(folders["5B"]).generate("a star", **QUICK)
    assert clip.metadata["model"]["fingerprint"] != own.metadata["model"]["fingerprint"]
