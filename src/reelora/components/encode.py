"""Text to prompt states and clips to latents, as training and generation take them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from reelora.shapes import FramesU8, Latents, PromptStates, Video

from .bundle import Bundle
from .tiling import tiled

__all__ = [
    "EncodedPrompts",
    "LatentPosterior",
    "LongPrompt",
    "encode_captions",
    "encode_image",
    "encode_prompts",
    "encode_video",
    "hear",
    "long_prompts",
    "padded_in_front",
    "to_video",
    "tokenize",
]

PooledStates = Float[Tensor, "b d"]


@dataclass(frozen=True, kw_only=True)
class LongPrompt:
    """A prompt of which the model reads only the beginning."""

    prompt: str
    num_tokens: int
    kept_tokens: int
    lost: str
    """The words that the model does not see."""

    def __str__(self) -> str:
        return f"{self.num_tokens} tokens, of which {self.kept_tokens} are read; lost is {self.lost!r}"


@dataclass(frozen=True, kw_only=True)
class EncodedPrompts:
    """Prompt states, and the prompts that were longer than the model reads."""

    states: PromptStates
    long: tuple[LongPrompt, ...]
    pooled: PooledStates | None = None
    """One state for each whole prompt, of models that are told it: SDXL."""


@dataclass(frozen=True, kw_only=True)
class LatentPosterior:
    """What the VAE says of clips: a Gaussian for each latent, already scaled as the transformer takes them.

    Kept as mean and deviation, so that every epoch can draw anew.
    """

    mean: Latents
    std: Latents

    def sample(self, generator: torch.Generator) -> Latents:
        """Draw ``mean + std * noise``, with the noise that the VAE itself would draw from the same generator."""
        b, f, c, h, w = self.mean.shape
        noise = torch.randn((b, c, f, h, w), generator=generator, device=generator.device)
        return self.mean + self.std * rearrange(noise, "b c f h w -> b f c h w").to(self.mean)


@torch.no_grad()
def encode_prompts(parts: Bundle, prompts: Sequence[str]) -> EncodedPrompts:
    """States of the text encoder, or of both, for prompts padded to the model's number of text tokens.

    Equal to what the stock pipeline computes (CogVideoX's with that ``max_sequence_length``). A prompt that is longer is cut,
    as there, and is named in ``long``. Takes at least one prompt; needs ``parts.text_roles``.
    """
    encoders = [getattr(parts, encoder) for encoder in parts.text_roles[1::2]]
    states, pooled = hear(encoders, tokenize(parts, prompts).unbind(1))
    return EncodedPrompts(states=states, long=long_prompts(parts, prompts), pooled=pooled)


def encode_captions(parts: Bundle, captions: Sequence[str]) -> EncodedPrompts:
    """As ``encode_prompts``, but the empty caption is what guidance leads away from: zeros where the model's folder says so.

    A caption that is dropped in training has to be that, or guidance would lead away from what was never learned.
    """
    encoded = encode_prompts(parts, captions)
    if not parts.has_zero_unconditional:
        return encoded
    is_said = torch.tensor([bool(caption) for caption in captions], device=encoded.states.device)
    pooled = None if encoded.pooled is None else encoded.pooled * is_said[:, None]
    return EncodedPrompts(states=encoded.states * is_said[:, None, None], long=encoded.long, pooled=pooled)


def tokenize(parts: Bundle, prompts: Sequence[str]) -> Int[Tensor, "b e s"]:
    """Tokens of prompts for each of the model's text encoders, padded and cut to its number of text tokens.

    Needs the tokenizers among ``parts.text_roles``.
    """
    options = {"padding": "max_length", "max_length": parts.facts.num_text_tokens, "truncation": True, "return_tensors": "pt"}
    tokenizers = [getattr(parts, tokenizer) for tokenizer in parts.text_roles[::2]]
    return torch.stack([tokenizer(list(prompts), **options).input_ids for tokenizer in tokenizers], dim=1)


def hear(encoders: Sequence[Any], tokens: Sequence[Int[Tensor, "b s"]]) -> tuple[PromptStates, PooledStates | None]:
    """Prompt states, and the pooled states of two encoders, each of which has tokens of its own; gradients reach them.

    One encoder gives its last hidden states. Two give those before the last layer, side by side, and the second one's
    projection. Source: SDXL, arXiv:2307.01952, section 2.1.
    """
    heard: list[Any] = [
        encoder(ids.to(encoder.device), output_hidden_states=len(encoders) > 1)
        for encoder, ids in zip(encoders, tokens, strict=True)
    ]
    if len(heard) == 1:
        return heard[0][0].to(encoders[0].dtype), None
    return torch.cat([one.hidden_states[-2] for one in heard], dim=-1), heard[-1][0]


@torch.no_grad()
def encode_video(parts: Bundle, video: Video) -> LatentPosterior:
    """Posterior of the latents of clips in [-1, 1], times the VAE's scaling factor, in float32; large clips go in tiles.

    ``invert_scale_latents`` (CogVideoX 1.5) concerns the latents of a conditioning image, not those of the clip, which
    are always multiplied. A VAE of stills takes every frame by itself. Raises ConfigError for a number of frames that makes
    no whole latents. Needs the role vae.
    """
    return _posterior(parts, video, scale=parts.vae.config.scaling_factor)


@torch.no_grad()
def encode_image(parts: Bundle, image: Video) -> LatentPosterior:
    """Posterior of the latents of pictures in [-1, 1] (clips of one frame) as an image-to-video model is shown them.

    They are multiplied by the VAE's scaling factor, or divided by it where ``invert_scale_latents`` says so (CogVideoX 1.5),
    as in the stock CogVideoXImageToVideoPipeline. Needs the role vae.
    """
    factor = parts.vae.config.scaling_factor
    return _posterior(parts, image, scale=1 / factor if parts.facts.invert_scale_latents else factor)


def padded_in_front(latents: Float[Tensor, "*b f c h w"], frame_group: int) -> Float[Tensor, "*b f c h w"]:
    """Latents with copies of the first frame in front, until the frames fill whole groups.

    CogVideoX 1.5 makes one token of two latent frames. The copy is made before noise is added, so that each frame has noise
    of its own. Source: CogVideo, finetune/models/cogvideox_t2v/lora_trainer.py.
    """
    first = latents[..., :1, :, :, :]
    return torch.cat([*[first] * (-latents.shape[-4] % frame_group), latents], dim=-4)


def to_video(clips: Sequence[FramesU8] | UInt8[Tensor, "b t h w c"]) -> Video:
    """Clips of one size, as files hold them (0 to 255), as pixels in [-1, 1]."""
    frames = clips if isinstance(clips, Tensor) else torch.stack(list(clips))
    return rearrange(frames, "b t h w c -> b c t h w").float() / 127.5 - 1


def long_prompts(parts: Bundle, prompts: Sequence[str]) -> tuple[LongPrompt, ...]:
    """The prompts of which the model reads only the beginning. Needs the first tokenizer alone: two cut at the same words."""
    tokenizer, num_tokens = getattr(parts, parts.text_roles[0]), parts.facts.num_text_tokens
    whole = tokenizer(list(prompts), verbose=False).input_ids
    return tuple(
        LongPrompt(
            prompt=prompt,
            num_tokens=len(ids),
            kept_tokens=num_tokens,
            # The last kept token is the end mark, which takes the place of one more word.
            lost=tokenizer.decode(ids[num_tokens - 1 : -1]),
        )
        for prompt, ids in zip(prompts, whole, strict=True)
        if len(ids) > num_tokens
    )


def _posterior(parts: Bundle, video: Video, *, scale: float) -> LatentPosterior:
    """What the VAE says, times ``scale``."""
    parts.facts.latent_frames(video.shape[2])
    mean, std = _ENCODERS[type(parts.vae).__name__](parts.vae, video.to(parts.vae.device, parts.vae.dtype))
    # In float32: rounding the product to bfloat16 would add a second error to that of the VAE.
    return LatentPosterior(mean=(mean.float() * scale).contiguous(), std=(std.float() * scale).contiguous())


def _encoded_video(vae: Any, video: Video) -> tuple[Latents, Latents]:
    num_frames, height, width = video.shape[2:]
    with tiled(vae, num_frames=num_frames, height=height, width=width):
        posterior = vae.encode(video).latent_dist
    return rearrange(posterior.mean, "b c f h w -> b f c h w"), rearrange(posterior.std, "b c f h w -> b f c h w")


def _encoded_stills(vae: Any, video: Video) -> tuple[Latents, Latents]:
    posterior = vae.encode(rearrange(video, "b c t h w -> (b t) c h w")).latent_dist
    mean, std = (rearrange(moment, "(b t) c h w -> b t c h w", b=len(video)) for moment in (posterior.mean, posterior.std))
    return mean, std


_ENCODERS: Mapping[str, Callable[[Any, Video], tuple[Latents, Latents]]] = {
    "AutoencoderKLCogVideoX": _encoded_video,
    "AutoencoderKL": _encoded_stills,
}
"""Mean and deviation of the latents, by the class of the VAE."""
