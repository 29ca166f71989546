"""``precompute``: every clip and caption of a data set into its cache."""

from collections.abc import Callable

import torch

from reelora.components import encode_prompts, encode_video, fingerprint_of, load_components, to_video
from reelora.data import CacheSettings, CacheSummary, ClipSettings, PromptEncoder, VideoEncoder, list_clips
from reelora.data import precompute as complete_cache

from .config import DataConfig
from .listener import Listener
from .machine import find_device
from .model import facts_of, find_model

__all__ = ["precompute"]


def precompute(model: str, data: DataConfig, *, device: str, listener: Listener) -> CacheSummary:
    """Encode what the cache lacks; text encoder and VAE are loaded one after the other, each only if it has work.

    Raises DataError that lists every clip that cannot be used, ConfigError for sizes that the model cannot do.
    """
    facts = facts_of(model)
    settings = CacheSettings(
        clip=data.clip_settings(facts),
        vae_fingerprint=fingerprint_of(find_model(model), "vae"),
        text_fingerprint=fingerprint_of(find_model(model), "tokenizer", "text_encoder"),
        num_text_tokens=facts.num_text_tokens,
    )
    clips = list_clips(data.folder)
    for name in clips.unused:
        listener.say(f"not used: {name}")
    place = find_device(device)
    summary = complete_cache(
        clips,
        data.cache_folder,
        settings,
        make_video_encoder=lambda: _video_encoder(model, place),
        make_prompt_encoder=lambda: _prompt_encoder(model, place, listener.say),
        on_progress=lambda done, total, name: listener.progress("precompute", done, total, name),
        skip_refused=data.skip_refused,
        video_batch_size=data.encode_batch_size,
    )
    for line in _report_lines(summary, settings.clip):
        listener.say(line)
    return summary


def _video_encoder(model: str, device: torch.device) -> VideoEncoder:
    parts = load_components(find_model(model), roles=["vae"], device=device)

    def encode(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        posterior = encode_video(parts, to_video(frames))
        return {"latent_mean": posterior.mean.cpu(), "latent_std": posterior.std.cpu()}

    return encode


def _prompt_encoder(model: str, device: torch.device, say: Callable[[str], None]) -> PromptEncoder:
    parts = load_components(find_model(model), roles=["tokenizer", "text_encoder"], device=device)

    def encode(captions: list[str]) -> torch.Tensor:
        encoded = encode_prompts(parts, captions)
        for prompt in encoded.long:
            say(f"caption too long: {prompt}")
        return encoded.states.cpu()

    return encode


def _report_lines(summary: CacheSummary, settings: ClipSettings) -> list[str]:
    changed = [f"{report.name}: {change.reason}" for report in summary.reports for change in report.changes]
    refused = [f"refused {refusal.name}: {refusal.reason}" for refusal in summary.refusals]
    size = f"{settings.num_frames} frames, {settings.height}x{settings.width} at {settings.fps:g} fps"
    found = f"{summary.encoded_videos} encoded now, {summary.reused_videos} found in {summary.folder}"
    return [*changed, *refused, f"{summary.num_clips} clips of {size}: {found}"]
