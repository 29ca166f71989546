"""The parts of a model by role, each loaded only if asked, and the encoders that need two of them."""

from .bundle import Bundle, load_components
from .encode import (
    EncodedPrompts,
    LatentPosterior,
    LongPrompt,
    encode_captions,
    encode_image,
    encode_prompts,
    encode_video,
    hear,
    long_prompts,
    padded_in_front,
    to_video,
    tokenize,
)
from .files import ModelFiles, RoleFiles, open_model
from .fingerprints import fingerprint_of
from .folder import Source
from .origin import tensors_of
from .part import Part
from .positions import Positions, rotary_positions
from .repeated import repeated_blocks, repeated_classes
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
from .skeleton import build_skeleton
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
    "Part",
    "PartReport",
    "Positions",
    "RoleFiles",
    "SatLora",
    "SatModel",
    "SatSampling",
    "Source",
    "build_skeleton",
    "check_roles",
    "encode_captions",
    "encode_image",
    "encode_prompts",
    "encode_video",
    "fingerprint_of",
    "hear",
    "load_components",
    "long_prompts",
    "needs_tiles",
    "open_model",
    "open_sat",
    "open_weights",
    "padded_in_front",
    "read_model",
    "rebuilt_tables",
    "repeated_blocks",
    "repeated_classes",
    "rotary_positions",
    "sat_settings",
    "tensors_of",
    "tiled",
    "to_video",
    "tokenize",
    "transformer_obstacles",
    "vae_obstacles",
]
