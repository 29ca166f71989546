"""Stable Diffusion 1.5 and XL from a folder of pictures to an adapter that stock diffusers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stills import SIDE, draw_stills, sample_of_text, save_still_model
from typer.testing import CliRunner
from watching import Watching

from reelora import recipes
from reelora.cli.app import app
from reelora.components import load_components
from reelora.data import CachedClips
from reelora.errors import DataError
from reelora.lora import Rack
from reelora.recipes import Silent, TrainConfig
from reelora.train import SizeCondition
from reelora.train.conditioning import Look

KINDS = {"SD 1.5": "StableDiffusionPipeline", "SDXL": "StableDiffusionXLPipeline"}
SDXL_TEXT = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    made: dict[str, Any] = {}

    def make(kind):
        if kind not in made:
            made[kind] = save_still_model(kind, tmp_path_factory.mktemp("model") / kind.replace(" ", ""))
        return made[kind]

    return make


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    return draw_stills(tmp_path_factory.mktemp("stills") / "drawn")


@pytest.fixture
def config_of(model_of, stills, tmp_path):
    def make(kind, output="run", **groups):
        settings = {
            "model": str(model_of(kind)),
            "output": tmp_path / output,
            "device": "cpu",
            "tensorboard": False,
            "data": {"folder": stills, "media": "images", "height": SIDE, "width": SIDE, "held_out": 2},
            "lora": {"rank": 2, "alpha": 2},
            "loop": {"steps": 3, "batch_size": 2, "evaluate_every": 0, "optimizer": {"learning_rate": 1e-2}},
        }
        return TrainConfig.of({**settings, **groups})

    return make


def stock(kind, model) -> Any:
    import diffusers

    pipeline = getattr(diffusers, KINDS[kind]).from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_gives_the_same_pictures_in_the_stock_pipeline(kind, config_of):
    config = config_of(kind)
    outcome = recipes.train(config, listener=Silent())
    assert outcome.result.is_complete
    parts = load_components(config.model)
    pipeline = parts.pipeline()
    assert type(pipeline).__name__ == KINDS[kind]
    pipeline.set_progress_bar_config(disable=True)
    plain = sample_of_text(pipeline)
    rack = Rack(parts)
    rack.load("it", outcome.adapter)
    with rack.using({"it": 1.0}):
        shown = sample_of_text(pipeline)
    theirs = stock(kind, config.model)
    torch.testing.assert_close(sample_of_text(theirs), plain, rtol=0, atol=1e-5)
    theirs.load_lora_weights(str(outcome.adapter.parent), weight_name=outcome.adapter.name)
    torch.testing.assert_close(sample_of_text(theirs), shown, rtol=0, atol=1e-5)
    assert (shown - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_unet_is_in_memory_while_it_is_trained(kind, config_of, alive):
    listener = Watching(alive)
    assert recipes.train(config_of(kind), listener=listener).result.is_complete
    assert listener.found == [{"unet"}] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_holds_the_states_that_the_stock_pipeline_makes_of_captions(kind, config_of, tmp_path):
    """Those of the empty caption are what guidance leads away from: zeros, where the model's folder says so."""
    config = config_of(kind)
    clips = recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    stored = {clip["caption"]: clip["prompt_states"] for clip in clips}
    prompts = list(stored)
    states, nothing, *pooled = stock(kind, config.model).encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    torch.testing.assert_close(torch.stack([stored[prompt] for prompt in prompts]), states)
    torch.testing.assert_close(clips.empty_prompt_states, nothing[0])
    assert clips.empty_prompt_states.any() == (kind == "SD 1.5")
    if kind == "SDXL":
        ours = clips.pooled_states()
        torch.testing.assert_close(torch.stack([ours[prompt] for prompt in prompts]), pooled[0])
        torch.testing.assert_close(ours[""], pooled[1][0])


def test_a_model_without_pooled_states_has_none_to_give(config_of):
    config = config_of("SD 1.5")
    clips = recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    with pytest.raises(DataError, match="no pooled state: it was made for another model"):
        clips.pooled_states()


@pytest.mark.parametrize(
    ("fit", "expected"),
    [("crop", (20, 40, 0, 8, 16, 16)), ("crop_start", (20, 40, 0, 0, 16, 16)), ("pad", (20, 40, 0, 0, 16, 16))],
)
def test_the_cache_knows_the_sizes_that_sdxl_is_told(fit, expected, config_of, tmp_path):
    """A picture of 20 x 40 becomes 16 x 32 and loses 8 columns on either side. Source: arXiv:2307.01952, section 2.2."""
    folder = tmp_path / "wide"
    folder.mkdir()
    Image.new("RGB", (40, 20), (200, 30, 30)).save(folder / "wide.png")
    (folder / "wide.txt").write_text("a red square")
    config = config_of("SDXL", data={"folder": folder, "media": "images", "height": SIDE, "width": SIDE, "fit": fit})
    clips = recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    assert clips.micro_conditions() == {"wide.png": expected}
    theirs = stock("SDXL", config.model)._get_add_time_ids(expected[:2], expected[2:4], expected[4:], torch.float32, 8)
    told = SizeCondition(sizes=clips.micro_conditions().__getitem__)
    look = Look(place=(0,), caption="a red square", frame_group=1)
    assert torch.equal(told(clips[0], look), theirs[0])


def test_a_turned_picture_has_the_size_that_a_viewer_shows(config_of, tmp_path):
    folder = tmp_path / "turned"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (40, 20), (200, 30, 30)).save(folder / "turned.jpg", exif=exif)
    (folder / "turned.txt").write_text("a red square")
    config = config_of("SDXL", data={"folder": folder, "media": "images", "height": SIDE, "width": SIDE})
    clips = recipes.precompute(config.model, config.data, device="cpu", listener=Silent())
    assert clips.micro_conditions() == {"turned.jpg": (40, 20, 8, 0, 16, 16)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_precompute_and_train(kind, model_of, stills, tmp_path):
    settings = {
        "data.media": "images",
        "data.height": SIDE,
        "data.width": SIDE,
        "data.held_out": 0,
        "data.cache": tmp_path / "cache",
    }
    sets = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    where = ["--data", str(stills), "--model", str(model_of(kind)), "--device", "cpu", "--json", *sets]
    found = [json.loads(run("precompute", *where).stdout) for _ in range(2)]
    assert [answer["encoded_clips"] for answer in found] == [16, 0]
    assert len(CachedClips(Path(found[1]["manifest"]))) == 16
    output = ["--output", str(tmp_path / "run"), "--steps", "1", "--set", "lora.rank=2", "--set", "loop.evaluate_every=0"]
    answer = json.loads(run("train", *where, *output).stdout)
    assert answer["is_complete"]
    assert Path(answer["adapter"]).is_file()


def run(*words):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result
