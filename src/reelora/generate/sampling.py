"""From noise to frames through the stock diffusers pipeline."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reelora.components import Bundle, tiled
from reelora.errors import ConfigError
from reelora.shapes import FramesU8, Latents, PromptStates

from .config import GenerateConfig
from .steps import StepWatch

__all__ = ["decode", "denoise", "make_pipeline"]

_HOOKS = "_diffusers_hook"


def make_pipeline(parts: Bundle) -> Any:
    """CogVideoX's pipeline without its text half, around a scheduler of its own.

    Timesteps are trailing, as in CogVideo's own inference: the other spacings never visit the last timestep, where a
    schedule of zero terminal SNR is pure noise. Source: arXiv:2305.08891, section 3.3.
    """
    from .pipeline import TextToVideoPipeline

    scheduler = type(parts.scheduler).from_config(parts.scheduler.config, timestep_spacing="trailing")
    no_text: Any = None
    pipeline = TextToVideoPipeline(no_text, no_text, parts.vae, parts.transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoise(
    pipeline: Any,
    states: PromptStates,
    negative_states: PromptStates | None,
    seeds: Sequence[int],
    config: GenerateConfig,
    watch: StepWatch,
) -> Latents:
    """All steps of one batch. Noise is drawn on the CPU, one generator per video: device and company do not matter."""
    with _no_hooks_left(pipeline.transformer):
        return pipeline(
            prompt_embeds=states,
            negative_prompt_embeds=negative_states,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="latent",
            callback_on_step_end=watch.after_step,
        ).frames


@contextmanager
def _no_hooks_left(transformer: nn.Module) -> Iterator[None]:
    """Takes off the registry that diffusers puts on a transformer: it points back, and the cycle would hold the memory."""
    had_hooks = _HOOKS in vars(transformer)
    try:
        yield
    finally:
        if not had_hooks:
            vars(transformer).pop(_HOOKS, None)


def decode(pipeline: Any, latents: Latents, config: GenerateConfig, *, padding: int) -> list[FramesU8]:
    """Frames of each video, decoded in the VAE's precision, one video at a time so that memory does not grow with the batch.

    ``padding`` latent frames in front fill the first group of CogVideoX 1.5 and are no part of the video. Raises
    ConfigError for a video that became NaN or infinite: it would be shown as black or noise.
    """
    vae = pipeline.vae
    with tiled(vae, num_frames=config.num_frames, height=config.height, width=config.width):
        return [_decode_one(pipeline, latent[None, padding:].to(vae.dtype), latents.dtype) for latent in latents]


def _decode_one(pipeline: Any, latent: Latents, sampled_in: torch.dtype) -> FramesU8:
    video = pipeline.decode_latents(latent)
    if not torch.isfinite(video).all():
        raise ConfigError(
            f"A video became NaN or infinite (sampled in {sampled_in}, decoded in {latent.dtype}). Use "
            "dtype=torch.bfloat16 or torch.float32, lower strengths, or less guidance."
        )
    pictures = pipeline.video_processor.postprocess_video(video, output_type="np")[0]
    return torch.from_numpy((pictures * 255).round().astype("uint8"))
