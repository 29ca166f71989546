"""The letters that axes are called by, everywhere.

=====  ====================================================
``b``  clip (batch)
``t``  pixel frame
``f``  latent frame
``c``  channel
``h``  height, ``w`` width (pixels or latents, as the name says)
``s``  text token, ``d`` its width
``o``  output feature of a layer, ``i`` input feature, ``r`` rank
=====  ====================================================
"""

from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["FramesU8", "Latents", "PromptStates", "Video"]

Video = Float[Tensor, "b c t h w"]
"""Pixels in [-1, 1]."""

FramesU8 = UInt8[Tensor, "t h w c"]
"""Pixels of one clip as files hold them, 0 to 255."""

Latents = Float[Tensor, "b f c h w"]
"""Scaled VAE latents in the order that CogVideoX's transformer takes them."""

PromptStates = Float[Tensor, "b s d"]
"""Last hidden states of the text encoder."""
