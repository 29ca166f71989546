"""Training from the first clip to the file, on the pocket model."""

import weakref
from importlib import import_module

import numpy as np
import pytest
import torch
from pocket_runs import Lines, changed, small_config, write_films

from reelora import components, recipes
from reelora.adapters import read_adapter
from reelora.data import read_clip
from reelora.errors import MismatchError
from reelora.generate import Session, read_video_metadata
from reelora.pocket import MODEL
from reelora.recipes import Silent, TrainConfig
from reelora.train import read_metrics


@pytest.fixture
def clips(tmp_path):
    return write_films(tmp_path / "clips", 25, 12, 12)


@pytest.fixture
def config(clips, tmp_path):
    settings = {"loop__steps": 4, "loop__checkpoint_every": 2, "loop__evaluate_every": 2}
    return small_config(tmp_path / "run", clips, trigger_words=["film"], data__held_out=1, **settings)


def frames_of(film):
    return read_clip(film, num_frames=17, height=64, width=64, fps=8)[0]


def losses(config):
    return [row["loss"] for row in read_metrics(config.output / "metrics.jsonl") if "loss" in row]


@pytest.fixture
def loaded(monkeypatch):
    """Role and weak reference of every network that the recipes load from now on."""
    seen = []

    def load(path, **options):
        parts = components.load_components(path, **options)
        seen.extend((role, weakref.ref(getattr(parts, role))) for role in parts.roles)
        return parts

    for room in ("precompute", "trained", "conditions"):
        monkeypatch.setattr(import_module(f"reelora.recipes.{room}"), "load_components", load)
    return seen


def test_a_run_leaves_what_it_promises(config):
    outcome = recipes.train(config, listener=Silent())
    names = {path.name for path in config.output.iterdir()}
    assert {"adapter.safetensors", "checkpoints", "config.toml", "metrics.jsonl", "report.html", "tensorboard"} <= names
    assert outcome.result.is_complete
    assert TrainConfig.read_toml(config.output / "config.toml") == config
    assert len(outcome.held_out) == 1


def test_every_change_of_a_clip_is_said(config):
    lines = Lines()
    recipes.train(config, listener=lines)
    assert any(line.startswith("0.mp4") and "17 of 25" in line for line in lines.said)
    assert any(line.startswith("1.mp4") and "last" in line for line in lines.said)


def test_a_complete_cache_loads_neither_text_encoder_nor_vae(config, loaded):
    """CogVideo's own trainer loads both in every process, needed or not, before anything else."""
    recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    loaded.clear()
    recipes.train(config, listener=Silent())
    assert {role for role, _ in loaded} == {"transformer", "scheduler", "tokenizer"}


def test_encoders_leave_memory_before_training_starts(config, loaded):
    recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    assert [role for role, part in loaded if role in ("text_encoder", "vae")] == ["text_encoder", "vae"]
    assert all(part() is None for role, part in loaded if role in ("text_encoder", "vae"))


def test_previews_change_no_number(config):
    shown = changed(config, output=config.output.with_name("shown"), preview__prompts=["a red circle"], preview__every=2)
    recipes.train(config, listener=Silent())
    recipes.train(shown, listener=Silent())
    assert losses(shown) == losses(config)
    one, other = (read_adapter(c.output / "adapter.safetensors") for c in (config, shown))
    assert all(torch.equal(one.pairs[name].b, other.pairs[name].b) for name in one.pairs)
    films = sorted(path.name for path in (shown.output / "previews").iterdir())
    assert films == ["step-000000-0.mp4", "step-000002-0.mp4", "step-000004-0.mp4"]
    assert read_video_metadata(shown.output / "previews" / films[1])["training_step"] == 2
    assert (shown.output / "report.html").read_text().count("data:video/mp4") == 3


def test_previews_have_files_and_noise_of_their_own_so_that_steps_can_be_compared(config):
    """CogVideo's own trainer draws on from one generator, and writes input and output under one name.

    At this rate nothing is learned, so that every preview has to be that of the base, to the last pixel.
    """
    still = changed(config, loop__optimizer__learning_rate=1e-30, preview__prompts=["a film", "a circle"], preview__every=2)
    recipes.train(still, listener=Silent())
    films = {path.stem: frames_of(path) for path in (config.output / "previews").iterdir()}
    assert sorted(films) == [f"step-00000{step}-{prompt}" for step in (0, 2, 4) for prompt in (0, 1)]
    for prompt in (0, 1):
        base = films[f"step-000000-{prompt}"]
        assert all(torch.equal(films[f"step-00000{step}-{prompt}"], base) for step in (2, 4))
    assert not torch.equal(films["step-000000-0"], films["step-000000-1"])


def test_a_preview_that_fails_is_said_and_training_goes_on(config):
    shown = changed(config, preview__prompts=["a red circle"], preview__every=2)
    config.output.mkdir(parents=True)
    (config.output / "previews").write_text("in the way")
    lines = Lines()
    assert recipes.train(shown, listener=lines).result.is_complete
    assert sum("failed, training goes on" in line for line in lines.said) == 3


def test_settings_that_cannot_be_are_refused_before_anything_is_encoded(config, clips):
    wrong = changed(config, lora__target_modules=["to_x"])
    with pytest.raises(MismatchError, match="to_x"):
        recipes.train(wrong, listener=Silent())
    assert not (clips / ".reelora").exists()
    assert not config.output.exists()


def test_stock_diffusers_runs_the_adapter_at_the_trained_strength(config):
    """The files of CogVideo's own trainer say no alpha: trained at alpha / rank = 1/2, they act twice as strong."""
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

    recipes.train(changed(config, loop__steps=30), listener=Silent())
    file = config.output / "adapter.safetensors"
    pipeline = CogVideoXPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipeline.load_lora_weights(file)
    scales = {module.scaling[name] for module in pipeline.transformer.modules() for name in getattr(module, "scaling", {})}
    assert scales == {0.5}
    session = Session(MODEL, dtype=torch.float32)
    prompt = "film number 1"
    ours = session.generate(prompt, seed=1, steps=3, adapters={file: 1.0}).frames.numpy()
    base = session.generate(prompt, seed=1, steps=3).frames.numpy()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt,
        num_inference_steps=3,
        guidance_scale=session.facts.default_guidance,
        generator=torch.Generator().manual_seed(1),
        max_sequence_length=session.facts.num_text_tokens,
        output_type="np",
        return_dict=False,
    )[0][0]
    difference = np.abs(ours.astype(int) - np.rint(theirs * 255).astype(int)).max()
    assert difference <= 1  # of 255, where PEFT adds the branch in another order
    assert np.abs(ours.astype(int) - base.astype(int)).max() > 1
