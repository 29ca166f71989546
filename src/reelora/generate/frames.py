"""What a VAE decodes as the pixels of a file."""

import torch
from einops import rearrange

from reelora.errors import ConfigError
from reelora.shapes import FramesU8, Video

__all__ = ["to_frames"]


def to_frames(video: Video, *, sampled_in: torch.dtype) -> FramesU8:
    """The frames of one clip in [-1, 1]; what lies beyond is cut off.

    Raises ConfigError for a video that became NaN or infinite: it would be shown as black or noise.
    """
    if not torch.isfinite(video).all():
        raise ConfigError(
            f"A video became NaN or infinite (sampled in {sampled_in}, decoded in {video.dtype}). Use "
            "dtype=torch.bfloat16 or torch.float32, lower strengths, or less guidance."
        )
    pixels = (video * 0.5 + 0.5).clamp(0, 1).cpu().float()
    return rearrange((pixels * 255).round().to(torch.uint8), "1 c t h w -> t h w c").contiguous()
