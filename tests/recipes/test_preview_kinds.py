"""Previews while training of models that make pictures, and of those that begin with one."""

import pytest
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from films import write_film
from PIL import Image
from stills import SIDE, draw_stills, save_still_model
from tiny_models import build_pipeline
from watching import Watching

from reelora import recipes
from reelora.errors import ConfigError
from reelora.recipes import Silent, TrainConfig


def config_of(model, data, output, preview, **groups):
    settings = {
        "model": str(model),
        "output": output,
        "device": "cpu",
        "tensorboard": False,
        "data": {"held_out": 0, **data},
        "lora": {"rank": 2, "alpha": 2},
        "preview": {"every": 2, **preview},
        "loop": {"steps": 2, "evaluate_every": 0, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}},
    }
    return TrainConfig.of({**settings, **groups})


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("kind", ["SD 1.5", "SDXL"])
def test_pictures_are_previewed_base_beside_adapter(kind, rank, alive, tmp_path):
    """Also with text encoders that are trained themselves; of the others none stays in memory."""
    model = save_still_model(kind, tmp_path / "model")
    data = {"folder": draw_stills(tmp_path / "stills"), "media": "images", "height": SIDE, "width": SIDE}
    preview = {"prompts": ["a red square above"], "steps": 4}
    config = config_of(model, data, tmp_path / "run", preview, text_encoder={"rank": rank})
    listener = Watching(alive)
    outcome = recipes.train(config, listener=listener)
    base, adapter = (config.output / "previews" / f"step-00000{step}-0.png" for step in (0, 2))
    assert base.read_bytes() != adapter.read_bytes()
    with Image.open(adapter) as picture:
        assert picture.size == (SIDE, SIDE)
    assert outcome.report.read_text().count("data:image/png;base64,") >= 2
    encoders = {role for role in ("text_encoder", "text_encoder_2") if rank and (kind == "SDXL" or role == "text_encoder")}
    assert listener.found == [{"unet"} | encoders] * 2


@pytest.fixture
def image_to_video(tmp_path):
    pipeline = build_pipeline("5B-I2V")
    names = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
    CogVideoXImageToVideoPipeline(**{name: pipeline.components[name] for name in names}).save_pretrained(tmp_path / "i2v")
    for index in range(2):
        write_film(tmp_path / "clips" / f"{index}.mp4", 9, noise=index)
        (tmp_path / "clips" / f"{index}.txt").write_text("a red star")
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")

    def make(output="run", **preview):
        return config_of(tmp_path / "i2v", {"folder": tmp_path / "clips"}, tmp_path / output, preview)

    return make


def test_a_model_that_begins_with_a_picture_is_previewed_on_those_that_are_given(image_to_video, tmp_path):
    config = image_to_video(prompts=["a red star", "a star"], images=[tmp_path / "red.png"] * 2, steps=2)
    assert recipes.train(config, listener=Silent()).result.is_complete
    names = sorted(path.name for path in (config.output / "previews").iterdir())
    assert names == [f"step-00000{step}-{index}.mp4" for step in (0, 2) for index in (0, 1)]


def test_without_pictures_it_is_said_before_any_work(image_to_video, tmp_path):
    config = image_to_video(prompts=["a red star"])
    with pytest.raises(ConfigError, match=r"0 pictures for 1 prompts, and .* begins with a picture: give one for each prompt"):
        recipes.train(config, listener=Silent())
    assert not config.output.exists()
    with pytest.raises(FileNotFoundError):
        recipes.train(image_to_video(prompts=["a red star"], images=[tmp_path / "none.png"]), listener=Silent())


def test_a_picture_for_a_model_that_begins_with_none_is_refused(tmp_path):
    preview = {"prompts": ["a red circle"], "images": [tmp_path / "red.png"]}
    config = config_of("pocket", {"folder": tmp_path}, tmp_path / "run", preview)
    with pytest.raises(ConfigError, match="begins with no picture: leave them out"):
        recipes.train(config, listener=Silent())
