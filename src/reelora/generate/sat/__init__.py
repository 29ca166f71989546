"""Sampling as the original SAT code of CogVideo does it, for whoever wants the same video as there."""

from .denoise import denoise, drawn_noise
from .network import SatNetwork
from .sample import sample_as_sat
from .schedule import SatSchedule, sat_schedule
from .solvers import SOLVERS, Draw, Step
from .vae import decode, encode, image_latents

__all__ = [
    "SOLVERS",
    "Draw",
    "SatNetwork",
    "SatSchedule",
    "Step",
    "decode",
    "denoise",
    "drawn_noise",
    "encode",
    "image_latents",
    "sample_as_sat",
    "sat_schedule",
]
