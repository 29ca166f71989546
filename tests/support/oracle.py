"""Recordings of the original SAT code: small ones in ``tests/golden``, large ones where a checkout has them beside it."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from torch import Tensor

from reelora.tensorio import open_checkpoint, open_tensors

__all__ = ["GOLDEN", "SAMPLES", "fixed_noise", "oracle_folders", "read_vae"]

GOLDEN = Path(__file__).parents[1] / "golden" / "sat"
SAMPLES = GOLDEN / "samples"


def oracle_folders(name: str) -> list[Path]:
    """The folder of a case that is too large for the repository, if it is here."""
    folder = Path(__file__).parents[3] / "shared" / "oracle" / name
    return [folder] if folder.is_dir() else []


def read_vae(folder: Path) -> tuple[Any, Mapping[str, Tensor]]:
    """The VAE of the recordings, and what both versions of the code made with it."""
    vae: Any = AutoencoderKLCogVideoX.from_config(json.loads((folder / "diffusers_vae" / "config.json").read_text()))
    stored = open_checkpoint(folder / "vae" / "3d-vae.pt").under("state_dict")
    with (folder / "map_to_diffusers.tsv").open() as file:
        names = {row["diffusers_key"]: row["sat_key"] for row in csv.DictReader(file, delimiter="\t")}
    vae.load_state_dict({name: stored[names[name]] for name in vae.state_dict()})
    files = [open_tensors(folder / f"reference_{version}.safetensors") for version in ("v10", "head")]
    return vae.eval().requires_grad_(False), {name: tensor for file in files for name, tensor in file.items()}


def fixed_noise(count: int, shape: torch.Size) -> Tensor:
    """The noise that was drawn as number ``count`` in every recording."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7000 + count))
