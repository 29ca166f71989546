"""Every variant from a folder of clips to its adapter, with only what training needs in memory."""

from typing import Any

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from films import write_film
from stills import SIDE, draw_stills, save_still_model
from tiny_models import build_pipeline
from watching import Watching

from reelora import recipes
from reelora.adapters import read_adapter
from reelora.data import read_as, read_first_frame
from reelora.errors import ConfigError, MismatchError
from reelora.recipes import Silent, TrainConfig
from reelora.train import read_metrics

VARIANTS: dict[str, dict[str, Any]] = {
    "2B": {},
    "5B": {},
    "5B-I2V": {},
    "1.5": {},
    "1.5-I2V": {"in_channels": 8, "ofs_embed_dim": 8},
}


def save_model(variant, folder):
    """A tiny model of a variant, as it is published."""
    changes = VARIANTS[variant]
    pipeline = build_pipeline(variant.removesuffix("-I2V") if changes else variant, **changes)
    if variant.endswith("I2V"):
        pipeline.vae.register_to_config(invert_scale_latents=bool(changes))
        names = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
        pipeline = CogVideoXImageToVideoPipeline(**{name: pipeline.components[name] for name in names})
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def films(tmp_path):
    """Makes a folder of films of noise."""

    def make(name, count=3, first=0):
        folder = tmp_path / name
        for index in range(first, first + count):
            write_film(folder / f"{index}.mp4", 18, noise=index, fps=16)
            (folder / f"{index}.txt").write_text("a red star")
        return folder

    return make


@pytest.fixture
def config_of(films, tmp_path):
    def make(model, output="run", **groups):
        settings = {
            "model": str(model),
            "output": tmp_path / output,
            "device": "cpu",
            "tensorboard": False,
            "data": {"folder": films("clips"), "held_out": 1, "fps": 16, "skip_refused": False},
            "lora": {"rank": 2, "alpha": 2},
            "loop": {"steps": 2, "checkpoint_every": 2, "evaluate_every": 0, "optimizer": {"learning_rate": 1e-3}},
        }
        return TrainConfig.of({**settings, **groups})

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_trained_with_nothing_but_its_transformer_in_memory(variant, config_of, alive, tmp_path):
    config = config_of(save_model(variant, tmp_path / variant))
    listener = Watching(alive)
    outcome = recipes.train(config, listener=listener)
    assert outcome.result.is_complete
    assert listener.found == [{"transformer"}] * 2
    assert len(read_adapter(outcome.adapter).pairs) == 8


def test_an_image_to_video_model_may_keep_its_vae_for_new_noise_at_every_look(config_of, alive, tmp_path):
    config = config_of(save_model("5B-I2V", tmp_path / "model"), image={"draws": 0})
    listener = Watching(alive)
    assert recipes.train(config, listener=listener).result.is_complete
    assert listener.found == [{"transformer", "vae"}] * 2


def test_after_precompute_no_tensor_of_an_encoder_is_alive(config_of, alive, tmp_path):
    config = config_of(save_model("1.5", tmp_path / "model"))
    clips = recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    assert len(clips) == 3
    assert alive() == set()


def test_clips_of_the_class_are_seen_with_their_weight(config_of, films, tmp_path):
    """DreamBooth: instance prompt with a trigger word, and a prior from a folder."""
    model = save_model("5B", tmp_path / "model")
    prior = {"folder": films("class", first=10), "caption": "a star", "weight": 1.0}
    plain, kept = config_of(model, "plain"), config_of(model, "kept", prior=prior)
    kept = kept.model_copy(update={"data": kept.data.model_copy(update={"trigger": "h"})})
    assert kept.class_data(tmp_path / "class", "videos").trigger == ""
    losses = []
    for config in (plain, kept):
        assert recipes.train(config, listener=Silent()).result.is_complete
        losses.append(next(row["loss"] for row in read_metrics(config.output / "metrics.jsonl") if "loss" in row))
    assert losses[1] > 1.5 * losses[0]  # noise in, a random model out: the class costs about as much as the clips
    with pytest.raises(ConfigError, match="prior"):
        recipes.train(config_of(model, "kept"), listener=Silent())


def test_clips_of_the_class_are_shown_with_pictures_of_their_own(config_of, films, tmp_path):
    """Both folders hold a film of the same name."""
    prior = {"folder": films("class"), "caption": "a star", "weight": 1.0}
    config = config_of(save_model("5B-I2V", tmp_path / "model"), prior=prior)
    assert recipes.train(config, listener=Silent()).result.is_complete


def test_a_run_goes_on_with_the_adapter_of_another(config_of, tmp_path):
    model = save_model("5B", tmp_path / "model")
    first, second = (
        config_of(model, "first"),
        config_of(model, "second", init_from=str(tmp_path / "first" / "adapter.safetensors")),
    )
    recipes.train(first, listener=Silent())
    recipes.train(second, listener=Silent())
    ended = [row["held_out_loss"] for row in read_metrics(first.output / "metrics.jsonl") if "held_out_loss" in row][-1]
    began = next(row["held_out_loss"] for row in read_metrics(second.output / "metrics.jsonl") if "held_out_loss" in row)
    assert began == ended
    other = config_of(model, "third", init_from=second.init_from, lora={"rank": 4, "alpha": 2})
    with pytest.raises(MismatchError, match="of rank 2, attached is rank 4"):
        recipes.train(other, listener=Silent())
    with pytest.raises(ConfigError, match=r"own strength; leave =0\.5 out"):
        recipes.train(config_of(model, "fourth", init_from=f"{second.init_from}=0.5"), listener=Silent())


def test_stable_diffusion_is_trained_on_a_folder_of_pictures(config_of, alive, tmp_path):
    """Pictures are clips of one frame; the same loop, the same attach, and only the UNet in memory."""
    data = {"folder": draw_stills(tmp_path / "stills"), "media": "images", "height": SIDE, "width": SIDE, "held_out": 2}
    config = config_of(save_still_model("SD 1.5", tmp_path / "model"), data=data)
    listener = Watching(alive)
    outcome = recipes.train(config, listener=listener)
    assert listener.found == [{"unet"}] * 2
    assert all(name.startswith("unet.") for name in read_adapter(outcome.adapter).pairs)


def test_the_picture_that_is_shown_is_the_first_frame_of_the_clip_to_the_last_bit(config_of, tmp_path):
    """D12: CogVideo's own trainer decodes and resizes it by another library than the clip."""
    config = config_of(save_model("5B-I2V", tmp_path / "model"))
    plan = recipes.plan_data(config.model, config.data, listener=Silent())
    for clip in plan.plan.clips:
        frames, _ = read_as(clip.source.path, clip.piece.settings, first=clip.piece.first)
        assert torch.equal(read_first_frame(clip)[0], frames[0])
