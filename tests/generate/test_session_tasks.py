"""Every task of every model: the video or image of the stock pipeline, with our inputs, schedulers and guidance."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from diffusers.pipelines.cogvideo.pipeline_cogvideox_video2video import CogVideoXVideoToVideoPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from PIL import Image
from stills import CAPTIONS, SIDE, save_still_model
from tiny_models import NUM_TEXT_TOKENS

from reelora.adapters import Adapter, LoraSpec, Pair
from reelora.components import encode_image, load_components, to_video
from reelora.errors import ConfigError
from reelora.generate import Session
from reelora.lora import Rack
from reelora.tensorio import fingerprint

ROUNDING = 1
FRAMES = {"5B": 9, "5B-I2V": 9, "1.5": 17, "1.5-I2V": 17}


def difference(one, other):
    return (one.int() - other.int()).abs().max().item()


def as_frames(video):
    return torch.from_numpy((video * 255).round().astype("uint8"))


@pytest.fixture
def picture(tmp_path):
    """A red disc on grey in another shape than any model's."""
    y, x = np.mgrid[:40, :60]
    pixels = np.full((40, 60, 3), 100, np.uint8)
    pixels[(y - 20) ** 2 + (x - 34) ** 2 < 150] = (220, 20, 20)
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


@pytest.fixture
def footage(drawn):
    """Seventeen frames of 32x32."""
    return drawn.frames[:, ::2, ::2].contiguous()


def stock(kind, folder, **settings: Any):
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 3, "guidance_scale": 5.0, "max_sequence_length": NUM_TEXT_TOKENS, "output_type": "np"}
    video = pipeline(prompt="a star", generator=torch.Generator().manual_seed(4), **{**common, **settings}).frames[0]
    return as_frames(video)


# ---- image to video


def scaling_images(model, folder, invert):
    """A copy of a model whose VAE says that latents of images are divided by its scale, or multiplied."""
    shutil.copytree(model, folder)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"invert_scale_latents": invert}))
    return folder


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("kind", ["5B-I2V", "1.5-I2V"])
def test_an_image_becomes_the_video_of_the_stock_pipeline(folders, tmp_path, picture, kind, invert):
    """The scale of its latents is the one that the published pipeline takes: for 1.5 the inverse."""
    folder = scaling_images(folders[kind], tmp_path / "model", invert)
    clip = Session(folder).generate("a star", image=picture, seed=4, steps=3, guidance=5.0)
    size = {"num_frames": FRAMES[kind], "height": 32, "width": 32}
    shown = Session(folder).job("a star", image=picture).source_frames()
    expected = stock(CogVideoXImageToVideoPipeline, folder, image=Image.fromarray(shown[0].numpy()), **size)
    assert clip.frames.shape == (FRAMES[kind], 32, 32, 3)
    assert torch.equal(clip.frames, expected)
    assert clip.metadata["task"] == "image-to-video"


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("kind", ["5B-I2V", "1.5-I2V"])
def test_generation_shows_the_latents_of_an_image_at_the_scale_of_training(folders, tmp_path, picture, kind, invert):
    """Three programs use three scales for CogVideoX 1.5; here the catalog's is the only one."""
    folder = scaling_images(folders[kind], tmp_path / "model", invert)
    session, seen = Session(folder), []
    session.parts.transformer.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["hidden_states"]), with_kwargs=True
    )
    session.generate("a star", image=picture, seed=4, steps=1, guidance=1)
    shown = session.job("a star", image=picture).source_frames()
    of_training = encode_image(session.parts, to_video([shown])).sample(torch.Generator().manual_seed(4))
    beside = seen[0][:, :, of_training.shape[2] :]
    torch.testing.assert_close(beside[:, :1], of_training, rtol=0, atol=1e-5)
    assert (beside[:, 1:] == 0).all()


def test_the_image_decides_the_video_and_how_it_is_fitted_too(folders, picture):
    session = Session(folders["5B-I2V"])
    pixels = np.asarray(Image.open(picture))
    cropped, padded = (session.generate("a star", image=picture, fit=fit, steps=2) for fit in ("crop", "pad"))
    from_memory = session.generate("a star", image=pixels, steps=2)
    other = session.generate("a star", image=255 - pixels, steps=2)
    assert torch.equal(cropped.frames, from_memory.frames)
    assert min(difference(cropped.frames, padded.frames), difference(cropped.frames, other.frames)) > 5 * ROUNDING
    assert cropped.metadata["image"]["file"] == str(picture)
    assert (cropped.metadata["fit"], padded.metadata["fit"]) == ("crop", "pad")
    assert "file" not in from_memory.metadata["image"]


def test_a_batch_of_images_gives_each_its_own_video(folders, picture):
    session = Session(folders["5B-I2V"])
    pixels = np.asarray(Image.open(picture))
    jobs = [session.job("a star", seed=i, image=image, steps=2, batch_size=2) for i, image in enumerate((pixels, 255 - pixels))]
    together = dict(session.run(jobs))
    assert [clip.metadata["batch_size"] for clip in together.values()] == [2, 2]
    for index, image in enumerate((pixels, 255 - pixels)):
        alone = session.generate("a star", seed=index, image=image, steps=2)
        assert difference(alone.frames, together[index].frames) <= ROUNDING


@pytest.mark.parametrize("kind", ["5B-I2V", "1.5-I2V"])
def test_sat_samples_with_an_image_too(folders, picture, kind):
    """Its image latents have another scale, so that for 1.5 the video is another one."""
    session = Session(folders[kind])
    clip = session.generate("a star", image=picture, sampling="sat", steps=3)
    assert clip.frames.shape[0] >= FRAMES[kind]
    assert clip.frames.float().std() > 1
    other = session.generate("a star", image=255 - np.asarray(Image.open(picture)), sampling="sat", steps=3)
    assert difference(clip.frames, other.frames) > 5 * ROUNDING


# ---- video to video


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_a_video_becomes_the_video_of_the_stock_pipeline(folder, footage, strength):
    clip = Session(folder).generate("a star", video=footage, seed=4, steps=6, guidance=5.0, video_strength=strength)
    pictures = [Image.fromarray(frame.numpy()) for frame in footage[:9]]
    size = {"height": 32, "width": 32, "strength": strength, "num_inference_steps": 6}
    expected = stock(CogVideoXVideoToVideoPipeline, folder, video=pictures, **size)
    assert difference(clip.frames, expected) <= ROUNDING
    assert clip.metadata["video_strength"] == strength


def test_15_takes_a_video_whose_latent_frames_fill_no_group(folders, footage):
    """Stock refuses its 17 frames, as it does the published 81: 21 latent frames do not divide by two."""
    folder = folders["1.5"]
    pictures = [Image.fromarray(frame.numpy()) for frame in footage]
    with pytest.raises(ValueError, match="divisible"):
        stock(CogVideoXVideoToVideoPipeline, folder, video=pictures, height=32, width=32)
    session = Session(folder)
    clip = session.generate("a star", video=footage, steps=4)
    assert clip.frames.shape == (17, 32, 32, 3)
    weak = session.generate("a star", video=footage, steps=20, video_strength=0.05)
    again = session.parts.vae.decode(session.parts.vae.encode((footage.permute(3, 0, 1, 2)[None].float() / 127.5) - 1)[0].mean)
    reconstruction = ((again.sample[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1) * 255).round()
    assert (weak.frames.float() - reconstruction).abs().mean() < (clip.frames.float() - reconstruction).abs().mean()


def test_the_steps_of_a_video_are_those_that_are_done(folder, footage):
    seen = []
    Session(folder).generate("a star", video=footage, steps=5, video_strength=0.4, on_step=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]


# ---- text to image


@pytest.mark.parametrize("kind", ["SD 1.5", "SDXL"])
def test_text_becomes_the_image_of_the_stock_pipeline(tmp_path, kind):
    folder = save_still_model(kind, tmp_path / "model")
    prompt = next(iter(CAPTIONS.values()))
    asked = {"seed": 3, "steps": 4, "guidance": 3.0, "height": SIDE, "width": SIDE, "scheduler": "ddim"}
    clip = Session(folder).generate(prompt, **asked)
    maker: Any = {"SD 1.5": StableDiffusionPipeline, "SDXL": StableDiffusionXLPipeline}[kind]
    pipeline = maker.from_pretrained(folder, **({"safety_checker": None} if kind == "SD 1.5" else {}))
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": 4, "guidance_scale": 3.0}
    image = pipeline(prompt, generator=torch.Generator().manual_seed(3), output_type="np", **size).images
    assert clip.frames.shape == (1, SIDE, SIDE, 3)
    assert difference(clip.frames, as_frames(image)) <= ROUNDING
    assert clip.metadata["task"] == "text-to-image"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "euler", "euler_a", "pndm", "unipc"])
def test_every_scheduler_of_stills_runs_and_counts_its_steps(tmp_path, scheduler):
    seen = []
    session = Session(save_still_model("SD 1.5", tmp_path / "model"))
    told = {"steps": 5, "height": SIDE, "width": SIDE, "on_step": lambda *step: seen.append(step)}
    clip = session.generate("a red square above", scheduler=scheduler, **told)
    assert clip.frames.float().std() > 1
    assert seen == [(step, 5) for step in range(1, 6)]


def test_an_adapter_of_text_encoder_and_unet_acts_as_on_a_rack_of_the_stock_pipeline(tmp_path):
    """Prompt states depend on the adapter: they are kept apart from those of the bare text encoder."""
    folder = save_still_model("SD 1.5", tmp_path / "model")
    session = Session(folder)
    prompt, asked = "a red square above", {"steps": 2, "height": SIDE, "width": SIDE, "scheduler": "ddim", "guidance": 3.0}
    adapter = still_adapter(load_components(folder))
    bare = session.generate(prompt, **asked)
    adapted = session.generate(prompt, adapters={"look": (adapter, 1.0)}, **asked)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    rack = Rack(pipeline)
    rack.load("look", adapter)
    rack.activate({"look": 1.0})
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "guidance_scale": 3.0}
    image = pipeline(prompt, generator=torch.Generator().manual_seed(0), output_type="np", **size).images
    assert difference(adapted.frames, as_frames(image)) <= ROUNDING
    assert difference(adapted.frames, bare.frames) > 5 * ROUNDING
    assert torch.equal(session.generate(prompt, **asked).frames, bare.frames)


def still_adapter(parts) -> Adapter:
    draw = torch.Generator().manual_seed(5)
    names = {"unet": "attn2.to_k", "text_encoder": "q_proj"}
    pairs = {
        f"{role}.{path}": Pair(
            torch.randn(2, module.in_features, generator=draw), torch.randn(module.out_features, 2, generator=draw), 0.5
        )
        for role, leaf in names.items()
        for path, module in getattr(parts, role).named_modules()
        if path.endswith(leaf)
    }
    return Adapter(pairs=pairs, spec=LoraSpec(rank=2, alpha=1), layout="memory", scale_source="the test")


# ---- schedulers and guidance


def test_ddim_is_that_of_the_stock_pipeline(folder):
    clip = Session(folder).generate("a star", seed=4, steps=3, guidance=5.0, scheduler="ddim")
    pipeline: Any = CogVideoXPipeline.from_pretrained(folder)
    pipeline.scheduler = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    size = {"num_frames": 9, "height": 32, "width": 32, "max_sequence_length": NUM_TEXT_TOKENS}
    asked = {"num_inference_steps": 3, "guidance_scale": 5.0, "generator": torch.Generator().manual_seed(4)}
    assert torch.equal(clip.frames, as_frames(pipeline("a star", output_type="np", **size, **asked).frames[0]))
    assert clip.metadata["scheduler"] == "ddim"


def test_the_scheduler_is_the_one_that_the_folder_names_unless_another_is_asked_for(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"][1] = "CogVideoXDDIMScheduler"
    (copy / "model_index.json").write_text(json.dumps(index))
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "CogVideoXDDIMScheduler"}))
    assert (Session(folder).config().scheduler, Session(copy).config().scheduler) == ("dpm", "ddim")
    assert Session(copy).config(scheduler="dpm").scheduler == "dpm"
    assert Session(copy).config(sampling="sat").scheduler == "dpm"
    assert Session(save_still_model("SD 1.5", tmp_path / "still")).config().scheduler == "ddim"


def test_dynamic_guidance_is_that_of_the_stock_pipeline(folder):
    session = Session(folder)
    clip = session.generate("a star", seed=4, steps=3, guidance=5.0, guidance_schedule="dynamic")
    size = {"num_frames": 9, "height": 32, "width": 32}
    assert torch.equal(clip.frames, stock(CogVideoXPipeline, folder, use_dynamic_cfg=True, **size))
    rising = session.generate("a star", seed=4, steps=3, guidance=5.0, guidance_schedule="index")
    assert difference(clip.frames, rising.frames) > 5 * ROUNDING


# ---- queues


def test_a_queue_changes_adapters_as_seldom_as_can_be_and_each_video_is_as_alone(parts, make_adapter, monkeypatch):
    """Twenty jobs over four adapters in random order."""
    session = Session.of(parts)
    before = fingerprint(parts.transformer.state_dict())
    adapters = [make_adapter(seed=seed) for seed in range(4)]
    order = np.random.default_rng(1).permutation(20)
    asked = [
        {
            "seed": int(i),
            "adapters": {"it": (adapters[i % 4], 0.5 + i % 2 / 2)},
            "steps": 2 + i % 3 // 2,
            "adapters_as": "fused",
        }
        for i in order
    ]
    changes = []
    activate = Rack.activate
    monkeypatch.setattr(Rack, "activate", lambda rack, strengths: (changes.append(strengths), activate(rack, strengths))[1])
    made = dict(session.run([session.job("a star", **told) for told in asked]))
    assert len([change for change in changes if change]) == 4  # the strength of each adapter is the same whenever it comes
    assert sorted(made) == list(range(20))
    assert fingerprint(parts.transformer.state_dict()) == before
    for index, told in enumerate(asked):
        alone = Session.of(parts).generate("a star", **told)
        assert torch.equal(alone.frames, made[index].frames)
        assert alone.metadata == made[index].metadata


def test_fused_and_branches_differ_by_rounding_and_the_clip_says_which(session, adapter):
    told = {"adapters": {"it": (adapter, 0.7)}, "steps": 2}
    fused, branches = (session.generate("a star", adapters_as=how, **told) for how in ("fused", "branches"))
    assert difference(fused.frames, branches.frames) <= ROUNDING
    assert [clip.metadata["adapters_as"] for clip in (fused, branches)] == ["fused", "branches"]


def test_adapters_are_fused_for_long_work_alone(session, adapter):
    short, long = (session.job("a", adapters={"it": (adapter, 1.0)}, steps=steps) for steps in (2, 1000))
    assert (short.is_fused, long.is_fused) == (False, True)
    assert not session.job("a", steps=1000).is_fused


def test_several_videos_of_a_prompt_are_all_kept_each_with_its_seed(session):
    clips = session.generate("a star", videos_per_prompt=3, seed=5, steps=2)
    assert [clip.metadata["seed"] for clip in clips] == [5, 6, 7]
    assert torch.equal(clips[1].frames, session.generate("a star", seed=6, steps=2).frames)
    two = session.generate(["a star", "a red star"], videos_per_prompt=2, seed=5, steps=2)
    assert [(clip.metadata["prompt"], clip.metadata["seed"]) for clip in two] == [
        ("a star", 5),
        ("a star", 6),
        ("a red star", 7),
        ("a red star", 8),
    ]


def test_prompts_of_a_queue_are_encoded_before_the_first_step_and_once(folder):
    session, order = Session(folder), []
    session.parts.load("text_encoder")
    session.parts.text_encoder.register_forward_hook(lambda *args: order.append("text"))
    jobs = [session.job(prompt, seed=seed, steps=1) for seed, prompt in enumerate(["a star", "a red star", "a star"])]
    list(session.run(jobs, on_step=lambda *step: order.append("step")))
    assert order == ["text"] * 3 + ["step"] * 3  # two prompts, and the empty one


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"video_strength": 0.5}, "video_strength is 0.5, but there is no video"),
        ({"fit": "pad"}, "there is neither an image nor a video to fit"),
        ({"image": "x.png"}, "none of its 4 channels is for an image"),
        ({"video": np.zeros((3, 32, 32, 3), np.uint8)}, "has 3 frames, 9 are to be made"),
        ({"video": np.zeros((9, 32, 32), np.uint8)}, "the last axis holds 32 channels"),
        ({"video": np.zeros((9, 32, 32, 3))}, r"are torch.float64"),
        ({"video": np.zeros((9, 32, 32, 3), np.uint8), "sampling": "sat"}, "has no video-to-video"),
        ({"video": np.zeros((9, 32, 32, 3), np.uint8), "steps": 2, "video_strength": 0.3}, "is not one step"),
        ({"scheduler": "eular"}, "has no scheduler 'eular': known are ddim, dpm"),
    ],
)
def test_what_cannot_be_is_refused_before_the_weights_are_opened(folder, tmp_path, settings, complaint):
    copy = shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match=complaint):
        Session(copy).generate("a star", **settings)


def test_a_queue_of_nothing_is_refused(session):
    with pytest.raises(ConfigError, match="at least one job"):
        session.run([])
