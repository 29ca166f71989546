"""The parts of a model by role, each loaded only if asked, and the encoders that need two of them."""

from .bundle import Bundle, load_components
from .encode import EncodedPrompts, LatentPosterior, LongPrompt, encode_prompts, encode_video, long_prompts, to_video
from .fingerprints import fingerprint_of
from .positions import Positions, rotary_positions
from .report import LoadReport, PartReport
from .roles import ROLES
from .stored import open_weights
from .tiling import needs_tiles, tiled

__all__ = [
    "ROLES",
    "Bundle",
    "EncodedPrompts",
    "LatentPosterior",
    "LoadReport",
    "LongPrompt",
    "PartReport",
    "Positions",
    "encode_prompts",
    "encode_video",
    "fingerprint_of",
    "load_components",
    "long_prompts",
    "needs_tiles",
    "open_weights",
    "rotary_positions",
    "tiled",
    "to_video",
]
