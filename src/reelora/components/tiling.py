"""Clips too large for the VAE in one piece."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["needs_tiles", "tiled"]

MOST_PIXELS = 1_000_000
"""Pixels of all the frames that the VAE works on at once, above which it divides them.

Decoding in bfloat16, the published VAE takes 5.7 KiB of activations for each: 14.7 GiB at 480x720 and 44.5 GiB at 768x1360,
where it works on eight frames at once whatever the length of the clip. Encoding takes less than half. So this many take
5.3 GiB, and one of its tiles, 240x360, 3.7 GiB.
"""


def needs_tiles(vae: Any, *, num_frames: int, height: int, width: int, wanted: bool | None = None) -> bool:
    """Whether a clip of this size goes through the VAE in tiles: as ``wanted`` if it exceeds a tile, or by its pixels."""
    exceeds_tile = height > vae.tile_sample_min_height or width > vae.tile_sample_min_width
    num_pixels = min(num_frames, vae.num_sample_frames_batch_size) * height * width
    return exceeds_tile and (vae.use_tiling or num_pixels > MOST_PIXELS if wanted is None else wanted)


@contextmanager
def tiled(vae: Any, *, num_frames: int, height: int, width: int, wanted: bool | None = None) -> Iterator[None]:
    """A VAE that takes clips of this size in overlapping tiles if `needs_tiles` says so; afterwards its settings are as before.

    Tiles are diffusers' own: half the size that the VAE was trained on, blended over a sixth of their height and a fifth
    of their width. The result differs slightly from that of the whole frame, since no tile sees beyond itself.
    """
    settings = {name: value for name, value in vars(vae).items() if name.startswith(("use_tiling", "tile_"))}
    vae.use_tiling = needs_tiles(vae, num_frames=num_frames, height=height, width=width, wanted=wanted)
    try:
        yield
    finally:
        vars(vae).update(settings)
