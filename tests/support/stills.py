"""Drawn pictures with captions as a cache to train a UNet on, tiny UNets, and the stock pipelines around them."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from einops import rearrange
from encoders import precompute
from PIL import Image
from tiny_models import build_still_vae
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from reelora.data import CachedClips, CacheSettings, ClipSettings, list_clips
from reelora.train import PooledCondition, SizeCondition

__all__ = [
    "CAPTIONS",
    "SIDE",
    "build_still_pipeline",
    "build_unet",
    "conditions_of",
    "draw_stills",
    "give_text_encoder",
    "give_text_encoders",
    "sample",
    "sample_of_text",
    "save_refiner",
    "save_still_model",
    "states_of",
    "write_stills",
]

SIDE = 16
NUM_TOKENS, WIDTH, POOLED = 8, 16, 8
PLACES = {"above": (1, 4), "below": (9, 4), "left": (5, 1), "right": (5, 9)}
"""The upper left corner of the square."""
COLOURS = {"red": (230, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}
CAPTIONS = {f"{colour}-{place}": f"a {colour} square {place}" for colour in COLOURS for place in PLACES}

_SHAPES: dict[str, dict[str, Any]] = {
    "SD 1.5": {},
    "SDXL": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + POOLED,
        "use_linear_projection": True,
    },
}


def build_unet(kind: str, **changes: Any) -> Any:
    """A tiny random UNet of a kind, frozen; ``changes`` are of its config."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **_SHAPES[kind] | changes,
    )
    return unet.requires_grad_(False).eval()


def states_of(caption: str, tokens: int = NUM_TOKENS, width: int = WIDTH) -> Tensor:
    """What stands for a text encoder: every word is a vector of its own."""
    words = [caption.split()[i] if i < len(caption.split()) else "" for i in range(tokens)]
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in words]
    return torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def draw_stills(folder: Path) -> Path:
    """Sixteen drawn pictures with captions."""
    folder.mkdir()
    for name, caption in CAPTIONS.items():
        colour, place = name.split("-")
        pixels = np.full((SIDE, SIDE, 3), 10, np.uint8)
        top, left = PLACES[place]
        pixels[top : top + 6, left : left + 6] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    return folder


def write_stills(folder: Path) -> CachedClips:
    """The pictures, encoded by a tiny VAE."""
    draw_stills(folder)
    settings = CacheSettings(
        clip=ClipSettings(num_frames=1, height=SIDE, width=SIDE, fps=1),
        vae_fingerprint="tiny",
        text_fingerprint="tiny",
        num_text_tokens=NUM_TOKENS,
    )
    torch.manual_seed(1)
    vae = build_still_vae().requires_grad_(False)

    def encode(frames: Tensor) -> dict[str, Tensor]:
        pixels = rearrange(frames, "b 1 h w c -> b c h w").float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        latents = rearrange(posterior.mean, "b c h w -> b 1 c h w")
        return {"latent_mean": latents / latents.std(), "latent_std": torch.full_like(latents, 0.1)}

    sources = list_clips(folder, media="images")
    encoders = {
        "make_video_encoder": lambda: encode,
        "make_prompt_encoder": lambda: (
            lambda captions: {"prompt_states": torch.stack([states_of(caption) for caption in captions])}
        ),
    }
    precompute(sources, folder / "cache", settings, **encoders)
    return CachedClips(folder / "cache")


def conditions_of(kind: str) -> list[Any]:
    """What the UNet of a kind is told besides the caption."""
    if kind == "SD 1.5":
        return []
    pooled = {caption: states_of(caption, 1, POOLED)[0] for caption in ("", *CAPTIONS.values())}
    return [PooledCondition(states=pooled), SizeCondition(sizes=lambda source: (SIDE, SIDE, 0, 0, SIDE, SIDE))]


def build_still_pipeline(kind: str, unet: Any) -> Any:
    """The stock pipeline of a kind, without text encoders: it is given the states of prompts."""
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    nothing: Any = None
    if kind == "SD 1.5":
        return StableDiffusionPipeline(
            build_still_vae(), nothing, nothing, unet, scheduler, nothing, nothing, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(build_still_vae(), nothing, nothing, nothing, nothing, unet, scheduler)


def sample(pipeline: Any, kind: str) -> Tensor:
    """Latents of one prompt after three steps."""
    prompt, nothing = next(iter(CAPTIONS.values())), ""
    options = {"prompt_embeds": states_of(prompt)[None], "negative_prompt_embeds": states_of(nothing)[None]}
    if kind == "SDXL":
        options |= {
            "pooled_prompt_embeds": states_of(prompt, 1, POOLED),
            "negative_pooled_prompt_embeds": states_of(nothing, 1, POOLED),
        }
    pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(3)
    sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": 3, "output_type": "latent"}
    return pipeline(generator=draw, **sizes, **options).images


def sample_of_text(pipeline: Any) -> Tensor:
    """Latents of one prompt after three steps, by a pipeline that has its text encoders."""
    pipeline.set_progress_bar_config(disable=True)
    draw, prompt = torch.Generator().manual_seed(3), next(iter(CAPTIONS.values()))
    return pipeline(prompt, generator=draw, height=SIDE, width=SIDE, num_inference_steps=3, output_type="latent").images


def give_text_encoder(pipeline: Any) -> Any:
    """The pipeline of SD 1.5 with a tiny random CLIP."""
    pipeline.register_modules(text_encoder=_build_clip(CLIPTextModel, WIDTH), tokenizer=_build_tokenizer())
    return pipeline


def give_text_encoders(pipeline: Any) -> Any:
    """The pipeline of SDXL with two tiny random CLIPs, whose states lie side by side."""
    pipeline.register_modules(
        text_encoder=_build_clip(CLIPTextModel, WIDTH // 2),
        tokenizer=_build_tokenizer(),
        text_encoder_2=_build_clip(CLIPTextModelWithProjection, WIDTH // 2, projection_dim=POOLED),
        tokenizer_2=_build_tokenizer(pad_token="!"),
    )
    return pipeline


_WORDS = ["!", *sorted({f"{word}</w>" for caption in CAPTIONS.values() for word in caption.split()})]
_MARKS = ["<|startoftext|>", "<|endoftext|>"]


def _build_tokenizer(**marks: str) -> Any:
    make: Any = CLIPTokenizer
    vocabulary = {word: number for number, word in enumerate([*_WORDS, *_MARKS])}
    return make(vocab=vocabulary, merges=[], model_max_length=77, **marks)


def _build_clip(kind: Any, width: int, **sizes: int) -> Any:
    sizes |= {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"bos_token_id": len(_WORDS), "eos_token_id": len(_WORDS) + 1, "vocab_size": len(_WORDS) + 2}
    torch.manual_seed(2)
    return kind(CLIPTextConfig.from_dict(sizes)).requires_grad_(False).eval()


_WHOLE = {"SD 1.5": give_text_encoder, "SDXL": give_text_encoders}


def save_still_model(kind: str, folder: Path) -> Path:
    """A whole tiny model of a kind, as it is published."""
    _WHOLE[kind](build_still_pipeline(kind, build_unet(kind))).save_pretrained(folder)
    return folder


def save_refiner(folder: Path) -> Path:
    """A whole tiny refiner of SDXL, as it is published: the second text encoder alone, and a score in place of a size."""
    unet = build_unet("SDXL", projection_class_embeddings_input_dim=5 * 4 + POOLED)
    give_text_encoders(build_still_pipeline("SDXL", unet)).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    lacking = {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    changes = {"_class_name": "StableDiffusionXLImg2ImgPipeline", **lacking}
    (folder / "model_index.json").write_text(json.dumps(index | changes))
    for role in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / role)
    return folder
