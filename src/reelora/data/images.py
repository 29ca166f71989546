"""Pictures as image-to-video models are shown them: latents of the first one, each with noise of its own, in the cache."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.errors import DataError
from reelora.shapes import FramesU8

from .dataset import CachedClips
from .entries import IMAGES, facts_of_image, find_entry, key_of, write_entry
from .plan import OnProgress, PlannedClip, read_first_frame
from .upkeep import in_use

__all__ = ["DrawEncoder", "StoredImages"]

Draws = Float[Tensor, "n c h w"]
"""Latents of one picture, each with noise of its own."""

DrawEncoder = Callable[[FramesU8, str], Draws]
"""Draws of a picture (a clip of one frame); what is random follows from the text, which names the clip by its content."""


class StoredImages:
    """``count`` noisy latents of the first picture of every clip, drawn from ``seed``, as entries of the clips' cache.

    An entry is named by the key of the clip's own latents (so by the video's bytes, what is done to them, and the VAE) with
    count and seed: it is never stale, and clips that are equal share it. Values are compared with their hash when they are
    first read. Asked for a clip by its name, gives its draws, which are held in memory if the clips are.
    """

    def __init__(self, clips: CachedClips, *, count: int, seed: int) -> None:
        self._folder = clips.folder
        self._facts = {name: facts_of_image(key, draws=count, seed=seed) for name, key in clips.latents_keys.items()}
        self._memory = clips.memory

    def missing(self, *, is_read_whole: bool = False) -> list[str]:
        """Names of the clips whose draws are not in the cache; what is there counts by header, or by value."""
        keys = {name: key_of(facts) for name, facts in self._facts.items()}
        return [
            name for name, key in keys.items() if find_entry(self._folder, IMAGES, key, is_read_whole=is_read_whole) is None
        ]

    @torch.no_grad()
    def complete(
        self,
        planned: Sequence[PlannedClip],
        make_encoder: Callable[[], DrawEncoder],
        *,
        on_progress: OnProgress,
        is_read_whole: bool = False,
    ) -> int:
        """Make what is missing, and say how much; ``make_encoder`` is called only if something is.

        Entries appear whole or not at all: it can be killed anywhere and goes on when called again. Nothing is written where
        nothing is missing. Raises DataError where the
        encoder gives values that are not finite.
        """
        names = self.missing(is_read_whole=is_read_whole)
        if not names:
            return 0
        clips = {clip.name: clip for clip in planned}
        (self._folder / IMAGES.folder).mkdir(exist_ok=True)
        with in_use(self._folder):
            encode = make_encoder()
            for done, name in enumerate(names, 1):
                self._write(name, encode(read_first_frame(clips[name]), str(self._facts[name]["latents"])))
                on_progress(done, len(names), name)
        return len(names)

    def __call__(self, name: str) -> Draws:
        return self._memory.read(IMAGES, key_of(self._facts[name]))["image_latents"]

    def _write(self, name: str, draws: Draws) -> None:
        if not bool(draws.isfinite().all()):
            raise DataError(f"{name}: the latents of its first picture are not finite. Run the VAE in float32 or bfloat16.")
        write_entry(self._folder, IMAGES, self._facts[name], {"image_latents": draws.to("cpu", torch.float32).contiguous()})
