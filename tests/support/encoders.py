"""Two tiny encoders that count how often they are made and called."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import avg_pool2d

from reelora.data import CacheSettings, CacheSummary, complete_cache, missing_entries, plan_clips

NUM_TOKENS, WIDTH = 6, 4


@dataclass
class Encoders:
    """Factories for ``precompute``; ``stop_at`` raises Ctrl-C before the clip or caption of that number."""

    made: list[str] = field(default_factory=list)
    videos: int = 0
    captions: list[str] = field(default_factory=list)
    stop_at: int | None = None

    def factories(self) -> dict:
        return {"make_video_encoder": self._make_video, "make_prompt_encoder": self._make_prompt}

    def _make_video(self):
        self.made.append("video")
        return self._encode_video

    def _make_prompt(self):
        self.made.append("prompt")
        return self._encode_prompts

    def _encode_video(self, frames: Tensor) -> dict[str, Tensor]:
        for _ in frames:
            self._count()
            self.videos += 1
        return {"latent_mean": pooled(frames), "latent_std": pooled(frames).abs() + 0.5}

    def _encode_prompts(self, captions: list[str]) -> dict[str, Tensor]:
        for caption in captions:
            self._count()
            self.captions.append(caption)
        return {"prompt_states": torch.stack([token_states(caption) for caption in captions])}

    def _count(self) -> None:
        if self.stop_at == self.videos + len(self.captions):
            raise KeyboardInterrupt


def pooled(frames: Tensor) -> Tensor:
    """Every fourth frame, eight times smaller, in -1 to 1: ``(b t h w c)`` to ``(b f c h w)``."""
    small = avg_pool2d(rearrange(frames[:, ::4], "b t h w c -> (b t) c h w").float() / 127.5 - 1, 8)
    return rearrange(small, "(b f) c h w -> b f c h w", b=len(frames))


def token_states(caption: str) -> Tensor:
    digest = hashlib.sha256(caption.encode()).digest()[: NUM_TOKENS * WIDTH]
    return torch.tensor(list(digest), dtype=torch.float32).reshape(NUM_TOKENS, WIDTH) / 255


def precompute(clips, folder: Path, settings: CacheSettings, *, is_read_whole=True, **options) -> CacheSummary:
    """All that a data set lacks in a cache: planned, found missing, and made."""
    plan = plan_clips(clips, settings, folder)
    return complete_cache(
        plan, missing_entries(plan, folder, settings, is_read_whole=is_read_whole), folder, settings, **options
    )
