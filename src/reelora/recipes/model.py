"""From the name a user types to a model folder, and to its facts."""

from pathlib import Path

from reelora.catalog import ModelFacts
from reelora.components import load_components
from reelora.pocket import MODEL

__all__ = ["POCKET", "denoiser_of", "facts_of", "find_model"]

POCKET = "pocket"
"""The name of the embedded model."""


def find_model(name: str) -> str | Path:
    """The embedded model's folder for ``pocket``; any other name is a folder or hub id already."""
    return MODEL if name == POCKET else name


def facts_of(name: str) -> ModelFacts:
    """The catalog's facts of a model, read from its configs alone."""
    return load_components(find_model(name), roles=["scheduler"]).facts


def denoiser_of(name: str) -> str:
    """The role of a model that is trained: transformer or unet."""
    return load_components(find_model(name), roles=["scheduler"]).denoiser
