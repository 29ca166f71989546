"""``precompute``: every clip and caption of a data set into its cache."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from reelora.components import Bundle, encode_prompts, encode_video, fingerprint_of, load_components, long_prompts, to_video
from reelora.data import CachedClips, CacheSettings, CacheSummary, ClipSettings, PromptEncoder, VideoEncoder, list_clips
from reelora.data import precompute as complete_cache

from .config import DataConfig
from .listener import Listener
from .machine import find_device
from .model import facts_of, find_model

__all__ = ["precompute"]


def precompute(model: str, data: DataConfig, *, device: str, listener: Listener) -> CachedClips:
    """Encode what the cache lacks; text encoder and VAE are loaded one after the other, each only if it has work.

    Raises DataError that lists every clip that cannot be used, ConfigError for sizes that the model cannot do and for a model
    that is not text-to-video.
    """
    facts = facts_of(model)
    facts.check_text_to_video()
    settings = CacheSettings(
        clip=data.clip_settings(facts),
        vae_fingerprint=fingerprint_of(find_model(model), "vae"),
        text_fingerprint=fingerprint_of(find_model(model), "tokenizer", "text_encoder"),
        num_text_tokens=facts.num_text_tokens,
    )
    place = find_device(device)
    clips = list_clips(data.folder)
    for name in clips.unused:
        listener.say(f"not used: {name}")
    with ExitStack() as loaded:
        summary = complete_cache(
            clips,
            data.cache_folder,
            settings,
            make_video_encoder=lambda: _video_encoder(_loaded(loaded, model, ["vae"], place)),
            make_prompt_encoder=lambda: _prompt_encoder(_loaded(loaded, model, ["tokenizer", "text_encoder"], place)),
            on_progress=lambda done, total, name: listener.progress("precompute", done, total, name),
            skip_refused=data.skip_refused,
            video_batch_size=data.encode_batch_size,
        )
    tokenizer = load_components(find_model(model), roles=["tokenizer"])
    for prompt in long_prompts(tokenizer, [clip.caption for clip in clips]):
        listener.say(f"caption too long: {prompt}")
    for line in _report_lines(summary, settings.clip):
        listener.say(line)
    return CachedClips(data.cache_folder)


def _loaded(stack: ExitStack, model: str, roles: Sequence[str], device: torch.device) -> Bundle:
    """Parts that are let go of when the next ones are loaded, and at the end of ``stack``."""
    stack.close()
    parts = load_components(find_model(model), roles=roles, device=device)
    stack.callback(parts.release, *roles)
    return parts


def _video_encoder(parts: Bundle) -> VideoEncoder:
    def encode(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        posterior = encode_video(parts, to_video(frames))
        return {"latent_mean": posterior.mean.cpu(), "latent_std": posterior.std.cpu()}

    return encode


def _prompt_encoder(parts: Bundle) -> PromptEncoder:
    return lambda captions: encode_prompts(parts, captions).states.cpu()


def _report_lines(summary: CacheSummary, settings: ClipSettings) -> list[str]:
    """Every change of every clip where any was encoded now; else only how many clips were changed how."""
    changes = [(report.name, change) for report in summary.reports for change in report.changes]
    if summary.encoded_videos:
        lines = [f"{name}: {change.reason}" for name, change in changes]
    else:
        lines = [f"{count} clips {kind}" for kind, count in Counter(change.kind for _, change in changes).items()]
    refused = [f"refused {refusal.name}: {refusal.reason}" for refusal in summary.refusals]
    size = f"{settings.num_frames} frames, {settings.height}x{settings.width} at {settings.fps:g} fps"
    found = f"{summary.encoded_videos} encoded now, {summary.reused_videos} found in {summary.folder}"
    return [*lines, *refused, f"{summary.num_clips} clips of {size}: {found}"]
