"""Trains the pocket text encoder and transformer together on latents that are encoded once.

Captions vary a little, so that prompts may too: some leave out the background, some start with a capital or end in a full
stop, and one in twenty calls its shape by a made-up word. One clip in five shows an outline that has no word, and is always
called by a made-up one: an unknown noun is *some* outline, so that an adapter need only say which. The number of padding tokens
varies as well, because stock pipelines pad to 226 while ours pad to 24.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from numpy.random import Generator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from .axes import even_axes
from .clips import COLOURS, MOTIONS, NUM_FRAMES, SIZE, Combination, Scene, draw, known_combinations, sample_scene
from .fit import Measure, Plan, fit
from .tokenizer import MAX_TOKENS, build_tokenizer
from .train_vae import to_video

__all__ = ["PLAN", "Denoiser", "build_denoiser", "build_scheduler", "encode_clips", "train_denoiser"]

PLAN = Plan(
    num_steps=3600,
    learning_rate=3e-3,
    muon_rate=0.03,
    is_hidden=re.compile(r"transformer_blocks\.\d+\.(attn1\.to_.*|ff\.net\..*)\.weight$"),
    averaging=0.999,
    checkpoint_every=100,
)
"""With AdamW alone, at 1e-3 and torch's own initial weights, the loss after a short run was 1.4 times as large."""
_NUM_CLIPS, _NUM_NAMELESS = 6000, 1500
_BATCH = 64
_DECISIVE = (500, 1000)
"""Timesteps at which noise hides outlines or all: there the text matters most."""
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


class Denoiser(nn.Module):
    """Text encoder and transformer, trained as one."""

    def __init__(self, text_encoder: T5EncoderModel, transformer: CogVideoXTransformer3DModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer


def build_denoiser(vocabulary: int) -> Denoiser:
    """A two-layer T5 of width 64 and a transformer of six blocks, six heads of 32, with rotary positions."""
    text = T5Config(
        vocab_size=vocabulary,
        d_model=64,
        d_kv=16,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        time_embed_dim=128,
        text_embed_dim=text.d_model,
        num_layers=6,
        sample_width=SIZE // 8,
        sample_height=SIZE // 8,
        sample_frames=NUM_FRAMES,
        patch_size=2,
        max_text_seq_length=MAX_TOKENS,
        use_rotary_positional_embeddings=True,
    )
    _start_as_identity(transformer)
    return Denoiser(T5EncoderModel(text), transformer)


def _start_as_identity(transformer: CogVideoXTransformer3DModel) -> None:
    """Every block starts as the identity and the output at zero. Source: DiT, arXiv:2212.09748, section 3.2, adaLN-Zero."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    modulations = [getattr(block, name).linear for block in transformer.transformer_blocks for name in ("norm1", "norm2")]
    for linear in (*modulations, transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(linear.weight)


def build_scheduler() -> CogVideoXDPMScheduler:
    """The published noise schedule: v-prediction, zero signal at the last step, no shift at this small size."""
    return CogVideoXDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def _vary(caption: str, scene: Scene, rng: Generator) -> str:
    if scene.shape.isdecimal() or rng.random() < 0.05:
        noun = "".join(rng.choice(_SYLLABLES, size=rng.integers(1, 4))) + str(rng.choice(["", "n", "t", "x", "le"]))
        caption = scene.caption(noun=noun)
    if rng.random() < 0.1:
        caption = caption.removesuffix(f" on a {scene.background} background")
    if rng.random() < 0.1:
        caption = caption[0].upper() + caption[1:]
    if rng.random() < 0.1:
        caption += "."
    return caption


def _combination(rng: Generator, number: int) -> Combination:
    """What a training clip shows: the known combinations in turn, then outlines that have no word."""
    known = known_combinations(held_out=False)
    if number < _NUM_CLIPS:
        return known[number % len(known)]
    return Combination(str(number), str(rng.choice(list(COLOURS))), str(rng.choice(MOTIONS)))


def encode_clips(vae: AutoencoderKLCogVideoX, path: Path, *, seed: int, report: Callable[[str], None]) -> None:
    """Draw and encode the training clips into ``path``: posterior means ``latents (n, f, c, h, w)`` of variance 1 along even
    ``axes``, their ``scenes``, the ``std`` that they were divided by, and the mean variance of the posterior, ``spread (c,)``.
    """
    codes, spreads, scenes, at_once = [], [], [], 40
    for first in range(0, _NUM_CLIPS + _NUM_NAMELESS, at_once):
        rng = np.random.default_rng([seed, 1, first])
        batch = [sample_scene(rng, _combination(rng, first + i)) for i in range(at_once)]
        video = to_video(np.stack([draw(scene) for scene in batch])).to(vae.device)
        with torch.inference_mode(), torch.autocast(video.device.type, torch.bfloat16):
            posterior = vae.encode(video, return_dict=False)[0]
        codes.append(posterior.mean.movedim(2, 1).float().cpu())
        spreads.append(posterior.var.float().mean((0, 2, 3, 4)).cpu())
        scenes += batch
        if first % 1000 == 0:
            report(f"encoded {first} of {_NUM_CLIPS + _NUM_NAMELESS}")
    axes = even_axes(torch.cat(codes))
    latents = torch.einsum("ij,nfjhw->nfihw", axes, torch.cat(codes))
    std = float(latents.std())
    state = {"latents": latents / std, "std": std, "axes": axes, "spread": torch.stack(spreads).mean(0)}
    fresh = path.with_suffix(".new")
    torch.save(state | {"scenes": [vars(scene) for scene in scenes]}, fresh)
    fresh.replace(path)


class _Float32Attention(TorchFunctionMode):
    """Attention in float32 under bfloat16 autocast: on CPUs its backward pass in bfloat16 takes four times as long."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            query, key, value = (tensor.float() for tensor in args[:3])
            return func(query, key, value, *args[3:], **(kwargs or {})).to(args[0].dtype)


def rotary_positions(denoiser: Denoiser, num_latent_frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rotary table that the stock pipeline computes for clips of the pocket size."""
    pipeline = CogVideoXPipeline(None, None, None, denoiser.transformer, build_scheduler())  # pyright: ignore
    return pipeline._prepare_rotary_positional_embeddings(SIZE, SIZE, num_latent_frames, device)


def _timesteps(generator: torch.Generator) -> Tensor:
    """One per clip: half of them evenly over all, half where it is decided what is where and how it moves."""
    spread = 2 * (torch.arange(_BATCH) + torch.rand(_BATCH, generator=generator)) / _BATCH
    first, last = _DECISIVE
    return torch.where(spread < 1, 1000 * spread, first + (last - first) * (spread - 1)).long()


def _text_length(rng: Generator) -> int:
    """How far this step pads its captions: mostly as we do, at times otherwise, rarely as stock pipelines do."""
    kind = rng.random()
    return MAX_TOKENS if kind < 0.7 else 226 if kind > 0.98 else int(rng.integers(18, 49))


def train_denoiser(
    latents: Tensor,
    scenes: list[Scene],
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    report: Callable[[str], None],
    measure: Measure,
) -> None:
    """Train on scaled ``latents (n, f, c, h, w)``; a tenth of the captions is empty, for guidance."""
    torch.manual_seed(seed)
    tokenizer: T5Tokenizer = build_tokenizer()
    denoiser = build_denoiser(len(tokenizer)).to(device)
    positions = rotary_positions(denoiser, latents.shape[1], device)
    alphas = build_scheduler().alphas_cumprod.float()
    attention = _Float32Attention if device.type == "cpu" else nullcontext

    def loss(step: int) -> Mapping[str, Tensor]:
        rng = np.random.default_rng([seed, 2, step])
        noise_rng = torch.Generator().manual_seed(int(rng.integers(2**63)))
        chosen = rng.choice(len(scenes), _BATCH, replace=False)
        captions = ["" if rng.random() < 0.1 else _vary(scenes[i].caption(), scenes[i], rng) for i in chosen]
        tokens = tokenizer(
            captions, padding="max_length", max_length=_text_length(rng), truncation=True, return_tensors="pt"
        ).input_ids
        clean = latents[torch.from_numpy(chosen)].float()
        noise = torch.randn(clean.shape, generator=noise_rng)
        timesteps = _timesteps(noise_rng)
        alpha = alphas[timesteps].view(-1, 1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with attention(), torch.autocast(device.type, torch.bfloat16):
            states = denoiser.text_encoder(tokens.to(device))[0]
            predicted = denoiser.transformer(
                noisy.to(device), states, timesteps.to(device), image_rotary_emb=positions, return_dict=False
            )[0]
        return {"loss": (predicted.float() - velocity.to(device)).square().mean()}

    fit(denoiser, loss, PLAN, folder, report=report, measure=measure)
