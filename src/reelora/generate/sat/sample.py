"""From prompts to frames as SAT makes them."""

from collections.abc import Sequence

import torch

from reelora.components import Bundle, Positions, rotary_positions, to_video
from reelora.generate.config import GenerateConfig
from reelora.generate.frames import to_frames
from reelora.generate.jobs import Job
from reelora.generate.prompts import PromptBook
from reelora.generate.steps import StepWatch
from reelora.shapes import FramesU8, Latents

from .denoise import denoise, drawn_noise
from .network import SatNetwork
from .schedule import sat_schedule
from .vae import decode, encode, image_latents

__all__ = ["sample_as_sat"]


def sample_as_sat(parts: Bundle, prompts: PromptBook, jobs: Sequence[Job], watch: StepWatch) -> list[FramesU8]:
    """The videos of jobs that share a batch, by SAT's schedule, samplers and guidance, which leads away from zeros.

    Raises ConfigError for a model whose noise SAT has no schedule for, and for a video that became NaN or infinite.
    """
    latents = _denoise(parts, prompts, jobs, watch)
    videos = (decode(parts.vae, latent[None], parts.facts) for latent in latents)
    return [to_frames(video, sampled_in=latents.dtype) for video in videos]


def _denoise(parts: Bundle, prompts: PromptBook, jobs: Sequence[Job], watch: StepWatch) -> Latents:
    config = jobs[0].config
    schedule = sat_schedule(parts.scheduler.config, steps=config.steps)
    states = prompts.texts(parts, [job.prompt for job in jobs], jobs[0].uses).states
    generators = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
    network = SatNetwork(
        transformer=parts.transformer,
        states=states,
        negative_states=torch.zeros_like(states) if config.is_guided else None,
        positions=_positions(parts, config, states.device),
        image_latents=_images(parts, jobs, generators) if jobs[0].task == "image-to-video" else None,
    )
    draw = drawn_noise(generators, _shape(parts, config), states.device)
    return denoise(network, schedule, draw, config, watch).to(states.dtype)


def _images(parts: Bundle, jobs: Sequence[Job], generators: Sequence[torch.Generator]) -> Latents:
    """What stands beside the latents for the images that the videos begin with: a draw by each video's own seed."""
    frames, *_ = _shape(parts, jobs[0].config)
    draws = []
    for job, generator in zip(jobs, generators, strict=True):
        latents = encode(parts.vae, to_video([job.source_frames()])).sample(generator)
        draws.append(image_latents(latents, parts.facts, num_latent_frames=frames))
    return torch.cat(draws)


def _shape(parts: Bundle, config: GenerateConfig) -> tuple[int, int, int, int]:
    """Of the latents of one video."""
    stride, facts = parts.facts.spatial_stride, parts.facts
    frames = facts.padded_latent_frames(config.num_frames)
    return frames, facts.latent_channels, config.height // stride, config.width // stride


def _positions(parts: Bundle, config: GenerateConfig, device: torch.device) -> Positions | None:
    if not parts.transformer.config.use_rotary_positional_embeddings:
        return None
    frames, _, height, width = _shape(parts, config)
    return rotary_positions(parts.transformer.config, num_latent_frames=frames, height=height, width=width, device=device)
