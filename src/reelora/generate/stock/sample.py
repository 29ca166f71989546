"""From noise to frames through a stock diffusers pipeline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from reelora.components import Bundle, encode_video, padded_in_front, tiled, to_video
from reelora.generate.frames import to_frames
from reelora.generate.jobs import Job
from reelora.generate.prompts import EncodedTexts, PromptBook
from reelora.generate.schedulers import make_scheduler
from reelora.generate.steps import StepWatch
from reelora.generate.tasks import Task
from reelora.shapes import FramesU8, Latents

__all__ = ["sample_stock"]

_HOOKS = "_diffusers_hook"


def sample_stock(parts: Bundle, prompts: PromptBook, jobs: Sequence[Job], watch: StepWatch) -> list[FramesU8]:
    """The videos of jobs that share a batch, by the scheduler and the guidance of the stock pipeline."""
    job = jobs[0]
    pipeline = _make_pipeline(parts, job)
    texts = prompts.texts(parts, [job.prompt for job in jobs], job.uses)
    others = prompts.texts(parts, [job.config.negative_prompt] * len(jobs), job.uses) if job.config.is_guided else None
    # Noise is drawn on the CPU, one generator per video: device and company do not matter.
    generators = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]

    def after_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipeline.next_step = index + 1
        if index < job.config.num_steps(job.task):  # PNDM calls one step two
            watch.after_step()
        return tensors

    with _no_hooks_left(getattr(parts, parts.denoiser)):
        latents = pipeline(
            **_named_texts(texts, others),
            **_INPUTS[job.task](pipeline, parts, jobs, generators),
            height=job.config.height,
            width=job.config.width,
            num_inference_steps=job.config.steps,
            guidance_scale=_ON if job.config.is_guided else _OFF,
            generator=generators,
            output_type="latent",
            callback_on_step_end=after_step,
            return_dict=False,
        )[0]
    return _DECODE[job.task](pipeline, parts, latents, job)


_ON, _OFF = 2.0, 1.0
"""Whether there is guidance; how much of it is told for every step."""


def _make_pipeline(parts: Bundle, job: Job) -> Any:
    """The pipeline of a task without its text half, around a scheduler of its own."""
    kind, options = _still_pipeline(parts) if job.task == "text-to-image" else _video_pipeline(job.task)
    scheduler = make_scheduler(job.config.scheduler, parts.facts, parts.scheduler.config)
    networks = {"vae": parts.vae, parts.denoiser: getattr(parts, parts.denoiser), "scheduler": scheduler}
    pipeline = kind(**dict.fromkeys(parts.text_roles), **networks, **options)
    pipeline.config_of_job = job.config
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _video_pipeline(task: Task) -> tuple[type[Any], Mapping[str, Any]]:
    from .videos import ImageToVideoPipeline, VideoPipeline

    return ImageToVideoPipeline if task == "image-to-video" else VideoPipeline, {}


def _still_pipeline(parts: Bundle) -> tuple[type[Any], Mapping[str, Any]]:
    from .stills import ImagePipeline, LargeImagePipeline

    if len(parts.text_roles) == _ONE_ENCODER:
        return ImagePipeline, _NO_CHECKER
    return LargeImagePipeline, {"add_watermarker": False}


_ONE_ENCODER = 2
"""Roles of a model that has one text encoder: it, and its tokenizer."""
_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _named_texts(texts: EncodedTexts, others: EncodedTexts | None) -> dict[str, Tensor | None]:
    """Prompt states by the names that pipelines give them."""
    named: dict[str, Tensor | None] = {"prompt_embeds": texts.states}
    if texts.pooled is not None:
        named["pooled_prompt_embeds"] = texts.pooled
    negative = {} if others is None else _named_texts(others, None)
    return named | {f"negative_{name}": value for name, value in negative.items()}


@contextmanager
def _no_hooks_left(network: nn.Module) -> Iterator[None]:
    """Takes off the registry that diffusers puts on a transformer: it points back, and the cycle would hold the memory."""
    had_hooks = _HOOKS in vars(network)
    try:
        yield
    finally:
        if not had_hooks:
            vars(network).pop(_HOOKS, None)


# ---- what a task begins with

Generators = Sequence[torch.Generator]


def _nothing(pipeline: Any, parts: Bundle, jobs: Sequence[Job], generators: Generators) -> dict[str, Any]:
    return {}


def _frames_alone(pipeline: Any, parts: Bundle, jobs: Sequence[Job], generators: Generators) -> dict[str, Any]:
    return {"num_frames": jobs[0].config.num_frames}


def _image(pipeline: Any, parts: Bundle, jobs: Sequence[Job], generators: Generators) -> dict[str, Any]:
    """Pixels from 0 to 1; the pipeline encodes them."""
    pictures = torch.stack([job.source_frames()[0] for job in jobs])
    return {"num_frames": jobs[0].config.num_frames, "image": rearrange(pictures, "b h w c -> b c h w").float() / 255}


def _video(pipeline: Any, parts: Bundle, jobs: Sequence[Job], generators: Generators) -> dict[str, Any]:
    """The latents of videos under as much noise as there is where the scheduler begins.

    CogVideoX 1.5 makes one token of two latent frames: copies of the first fill the first group, as in training.
    """
    scheduler, config = pipeline.scheduler, jobs[0].config
    _begin_later(scheduler, config.steps - config.num_steps(jobs[0].task))
    scheduler.set_timesteps(config.steps)
    started = [_noisy(parts, job, generator, scheduler) for job, generator in zip(jobs, generators, strict=True)]
    latents = torch.cat(started).to(getattr(parts, parts.denoiser).dtype)
    return {"num_frames": config.num_frames, "latents": latents}


def _noisy(parts: Bundle, job: Job, generator: torch.Generator, scheduler: Any) -> Latents:
    latents = encode_video(parts, to_video([job.source_frames()])).sample(generator).cpu()
    latents = padded_in_front(latents, parts.facts.patch_size_t or 1)
    noise = torch.randn(latents.shape, generator=generator)
    return scheduler.add_noise(latents, noise, scheduler.timesteps[:1].cpu())


def _begin_later(scheduler: Any, num_skipped: int) -> None:
    """Leave the first timesteps of a scheduler out, however often they are set."""
    set_all = scheduler.set_timesteps

    def set_timesteps(*args: Any, **options: Any) -> None:
        set_all(*args, **options)
        scheduler.timesteps = scheduler.timesteps[num_skipped:]

    scheduler.set_timesteps = set_timesteps


_INPUTS: Mapping[Task, Callable[[Any, Bundle, Sequence[Job], Generators], dict[str, Any]]] = {
    "text-to-video": _frames_alone,
    "image-to-video": _image,
    "video-to-video": _video,
    "text-to-image": _nothing,
}


# ---- what its latents become


def _decode_videos(pipeline: Any, parts: Bundle, latents: Latents, job: Job) -> list[FramesU8]:
    """Decoded in the VAE's precision, one video at a time so that memory does not grow with the batch.

    The latent frames that fill the first group of CogVideoX 1.5 are no part of the video.
    """
    vae, facts, size = parts.vae, parts.facts, job.config.size
    padding = facts.padded_latent_frames(job.config.num_frames) - facts.latent_frames(job.config.num_frames)
    with tiled(vae, **size, wanted=job.tiles):
        videos = (pipeline.decode_latents(latent[None, padding:].to(vae.dtype)) for latent in latents)
        return [to_frames(video, sampled_in=latents.dtype) for video in videos]


def _decode_images(pipeline: Any, parts: Bundle, latents: Tensor, job: Job) -> list[FramesU8]:
    """Each as a video of one frame."""
    vae = parts.vae
    images = (vae.decode((latent[None] / vae.config.scaling_factor).to(vae.dtype)).sample for latent in latents)
    return [to_frames(image[:, :, None], sampled_in=latents.dtype) for image in images]


_DECODE: Mapping[Task, Callable[[Any, Bundle, Tensor, Job], list[FramesU8]]] = {
    "text-to-video": _decode_videos,
    "image-to-video": _decode_videos,
    "video-to-video": _decode_videos,
    "text-to-image": _decode_images,
}
