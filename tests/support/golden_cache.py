"""What the cache stores of the golden film and picture."""

from pathlib import Path

from torch import Tensor

from reelora import recipes
from reelora.data.entries import _CODE_VERSION as CODE_VERSION
from reelora.recipes import DataConfig, Silent

__all__ = ["CODE_VERSION", "SETTINGS", "stored"]

SETTINGS = {
    "cropped": {"choice": "chunks", "padding": "bounce"},
    "bordered": {"fit": "pad_edge"},
}
"""Two ways to a size, with pieces and padding in time."""


def stored(clips: Path, cache: Path) -> dict[str, Tensor]:
    """The tensors of every entry by way, clip and part, made by the pocket model's encoders."""
    found: dict[str, Tensor] = {}
    for way, settings in SETTINGS.items():
        common = {"folder": clips, "cache": cache / way, "media": "both", "buckets": ["17x64x64", "1x64x64"]}
        data = DataConfig.of(common | settings)
        for clip in recipes.precompute("pocket", data, device="cpu", listener=Silent()):
            for part in ("latent_mean", "latent_std", "prompt_states"):
                found[f"{way}/{clip['source']}/{part}"] = clip[part].float().clone()
    return found
