"""The parts of a model by role, each loaded only if asked, and the encoders that need two of them."""

from .bundle import Bundle, load_components
from .encode import (
    EncodedPrompts,
    LatentPosterior,
    LongPrompt,
    encode_image,
    encode_prompts,
    encode_video,
    long_prompts,
    to_video,
)
from .files import ModelFiles, RoleFiles, open_model
from .fingerprints import fingerprint_of
from .positions import Positions, rotary_positions
from .report import LoadReport, PartReport
from .roles import ROLES, check_roles
from .sat import (
    FINAL_NORM_EPS,
    TABLE,
    SatLora,
    SatModel,
    SatSampling,
    open_sat,
    read_model,
    rebuilt_tables,
    sat_settings,
    transformer_obstacles,
    vae_obstacles,
)
from .stored import open_weights
from .tiling import needs_tiles, tiled

__all__ = [
    "FINAL_NORM_EPS",
    "ROLES",
    "TABLE",
    "Bundle",
    "EncodedPrompts",
    "LatentPosterior",
    "LoadReport",
    "LongPrompt",
    "ModelFiles",
    "PartReport",
    "Positions",
    "RoleFiles",
    "SatLora",
    "SatModel",
    "SatSampling",
    "check_roles",
    "encode_image",
    "encode_prompts",
    "encode_video",
    "fingerprint_of",
    "load_components",
    "long_prompts",
    "needs_tiles",
    "open_model",
    "open_sat",
    "open_weights",
    "read_model",
    "rebuilt_tables",
    "rotary_positions",
    "sat_settings",
    "tiled",
    "to_video",
    "transformer_obstacles",
    "vae_obstacles",
]
