"""From noise to frames through the stock diffusers pipeline."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reelora.components import Bundle, tiled
from reelora.shapes import FramesU8, Latents

from .config import GenerateConfig
from .frames import to_frames
from .jobs import Job
from .prompts import PromptBook
from .steps import StepWatch

__all__ = ["sample_stock"]

_HOOKS = "_diffusers_hook"


def sample_stock(
    parts: Bundle, prompts: PromptBook, jobs: Sequence[Job], config: GenerateConfig, watch: StepWatch
) -> list[FramesU8]:
    """The videos of one batch, by the scheduler and the guidance of CogVideoX's pipeline."""
    pipeline = _make_pipeline(parts)
    latents = _denoise(pipeline, parts, prompts, jobs, config, watch)
    padding = parts.facts.padded_latent_frames(config.num_frames) - parts.facts.latent_frames(config.num_frames)
    return _decode(pipeline, latents, config, padding=padding)


def _make_pipeline(parts: Bundle) -> Any:
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


def _denoise(
    pipeline: Any, parts: Bundle, prompts: PromptBook, jobs: Sequence[Job], config: GenerateConfig, watch: StepWatch
) -> Latents:
    """All steps of one batch. Noise is drawn on the CPU, one generator per video: device and company do not matter."""
    negative = prompts.states(parts, [config.negative_prompt] * len(jobs)) if config.has_negative_prompt else None
    with _no_hooks_left(pipeline.transformer):
        return pipeline(
            prompt_embeds=prompts.states(parts, [job.prompt for job in jobs]),
            negative_prompt_embeds=negative,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
            output_type="latent",
            callback_on_step_end=watch.after_pipeline_step,
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


def _decode(pipeline: Any, latents: Latents, config: GenerateConfig, *, padding: int) -> list[FramesU8]:
    """Frames of each video, decoded in the VAE's precision, one video at a time so that memory does not grow with the batch.

    ``padding`` latent frames in front fill the first group of CogVideoX 1.5 and are no part of the video.
    """
    vae = pipeline.vae
    with tiled(vae, num_frames=config.num_frames, height=config.height, width=config.width):
        videos = (pipeline.decode_latents(latent[None, padding:].to(vae.dtype)) for latent in latents)
        return [to_frames(video, sampled_in=latents.dtype) for video in videos]
