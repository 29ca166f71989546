"""SAT checkpoints: YAML files and torch files into the same parts that a folder in diffusers' layout gives."""

from .architecture import SatLora, SatModel, SatSampling, read_model
from .checkpoint import SatCheckpoint, is_checkpoint, open_sat
from .misfit import likely_cause
from .origin import SatOrigin, is_sat, open_origin
from .parts import SatSources
from .tables import FINAL_NORM_EPS, TABLE, rebuilt_tables
from .writing import sat_settings, transformer_obstacles, vae_obstacles

__all__ = [
    "FINAL_NORM_EPS",
    "TABLE",
    "SatCheckpoint",
    "SatLora",
    "SatModel",
    "SatOrigin",
    "SatSampling",
    "SatSources",
    "is_checkpoint",
    "is_sat",
    "likely_cause",
    "open_origin",
    "open_sat",
    "read_model",
    "rebuilt_tables",
    "sat_settings",
    "transformer_obstacles",
    "vae_obstacles",
]
