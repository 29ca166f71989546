"""From the command to the first optimizer step, on a folder of clips that has been trained on before.

Theirs is what diffusers' ``examples/cogvideo/train_cogvideox_lora.py`` does, in its order: load every part, ``add_adapter``,
encode all clips and captions, then the step. Ours finds the cache complete: text encoder and VAE stay on the disk, the base is
mapped. Each side runs in a process of its own, which has imported everything before the clock starts.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from einops import rearrange
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from reelora import recipes
from reelora.generate import Clip
from reelora.pocket import MODEL
from reelora.recipes import Silent, TrainConfig

from .measured import measure
from .models import build_transformer
from .side_by_side import Row

__all__ = ["run"]

NUM_LAYERS, TEXT_LAYERS, NUM_CLIPS, REPEATS = 4, 2, 4, 3
FRAMES, SIZE, TOKENS = 9, 64, 226


def run() -> Iterator[Row]:
    """2B's width with few blocks, a published VAE, T5-XXL's width with two layers; the files are in the page cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        write_films(folder / "clips")
        recipes.precompute(str(folder / "model"), _config(folder, folder).data, device="cpu", listener=Silent())
        ours = [measure(__name__, "ours", folder) for _ in range(REPEATS)]
        theirs = [measure(__name__, "theirs", folder) for _ in range(REPEATS)]
        what = f"train to the first step, 2B width, {NUM_LAYERS} blocks, {NUM_CLIPS} clips cached"
        yield Row(what=what, unit="s", ours=min(ours)[0], theirs=min(theirs)[0])
        memory = [min(peak for _, peak in side) / 1e9 for side in (ours, theirs)]
        yield Row(what=f"{what}: memory", unit="GB", ours=memory[0], theirs=memory[1])


def write_model(folder: Path) -> None:
    """A folder in diffusers' layout with random weights in bfloat16; its tokenizer is the pocket model's."""
    folder.mkdir()
    torch.manual_seed(0)
    build_transformer("2B", num_layers=NUM_LAYERS).save_pretrained(folder / "transformer")
    _in_bf16(AutoencoderKLCogVideoX()).save_pretrained(folder / "vae")
    text = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=TEXT_LAYERS, feed_forward_proj="gated-gelu")
    _in_bf16(T5EncoderModel(text)).save_pretrained(folder / "text_encoder")
    CogVideoXDPMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    shutil.copytree(MODEL / "tokenizer", folder / "tokenizer")
    classes = {
        "tokenizer": ["transformers", "T5Tokenizer"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        "scheduler": ["diffusers", "CogVideoXDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline", **classes}))


def _in_bf16(model: Any) -> Any:
    return nn.Module.to(model, torch.bfloat16)


def write_films(folder: Path) -> None:
    """Small films of noise with captions."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    for index in range(NUM_CLIPS):
        frames = torch.randint(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=draw)
        Clip(frames=frames, fps=8).save(folder / f"{index}.mp4")
        (folder / f"{index}.txt").write_text(f"film number {index}")


class _FirstStepError(Exception):
    """It is done."""


class _UntilFirstStep(Silent):
    """Ends a run after one step."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        if task == "train":
            raise _FirstStepError


def ours(folder: str) -> None:
    """The recipe until its first step is done, in a new output folder."""
    with tempfile.TemporaryDirectory() as output, suppress(_FirstStepError):
        recipes.train(_config(Path(folder), Path(output)), listener=_UntilFirstStep())


def theirs(folder: str) -> None:
    """The same step in the order of diffusers' example."""
    model, clips = Path(folder) / "model", Path(folder) / "clips"
    scheduler: Any = CogVideoXDPMScheduler.from_pretrained(model, subfolder="scheduler")
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    text_encoder: Any = T5EncoderModel.from_pretrained(model, subfolder="text_encoder", dtype=torch.bfloat16)
    transformer: Any = CogVideoXTransformer3DModel.from_pretrained(model, subfolder="transformer", dtype=torch.bfloat16)
    vae: Any = AutoencoderKLCogVideoX.from_pretrained(model, subfolder="vae", dtype=torch.bfloat16)
    for part in (text_encoder, transformer, vae):
        part.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=128, lora_alpha=64, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()  # as cast_training_params does
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    rates = get_scheduler("constant", optimizer)
    latents = [_latents(path, vae) for path in sorted(clips.glob("*.mp4"))]
    states = [_states(path.read_text(), tokenizer, text_encoder) for path in sorted(clips.glob("*.txt"))]
    noise, times = torch.randn_like(latents[0]), torch.randint(1000, (1,))
    noisy = scheduler.add_noise(latents[0], noise, times)
    predicted = transformer(hidden_states=noisy, encoder_hidden_states=states[0], timestep=times, return_dict=False)[0]
    guess = scheduler.get_velocity(predicted, noisy, times)
    weight = 1 / (1 - scheduler.alphas_cumprod[times])
    (weight * (guess - latents[0]) ** 2).mean().backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    rates.step()


@torch.no_grad()
def _latents(path: Path, vae: Any) -> Tensor:
    """A clip, resized already, as the transformer takes it."""
    with av.open(str(path)) as film:
        frames = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)])
    video = rearrange(frames, "t h w c -> 1 c t h w").to(torch.bfloat16) / 127.5 - 1
    return rearrange(vae.encode(video).latent_dist.sample() * vae.config["scaling_factor"], "b c f h w -> b f c h w")


@torch.no_grad()
def _states(caption: str, tokenizer: Any, encoder: Any) -> Tensor:
    tokens = tokenizer(caption, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids)[0]


def _config(folder: Path, output: Path) -> TrainConfig:
    return TrainConfig.of(
        {
            "model": str(folder / "model"),
            "output": output,
            "device": "cpu",
            "precision": "bf16",
            "tensorboard": False,
            "data": {"folder": folder / "clips", "num_frames": FRAMES, "height": SIZE, "width": SIZE, "held_out": 0},
            "loop": {"steps": 1},
        }
    )
