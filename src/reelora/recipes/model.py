"""From the name a user types to a model folder, and to its facts."""

from pathlib import Path

from reelora.catalog import ModelFacts
from reelora.components import fingerprint_of, load_components
from reelora.pocket import MODEL

__all__ = ["POCKET", "denoiser_of", "facts_of", "find_model", "text_fingerprint_of", "text_roles_of"]

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


def text_roles_of(name: str) -> tuple[str, ...]:
    """The roles of a model that make prompt states out of text: tokenizers, each followed by its encoder."""
    return load_components(find_model(name), roles=["scheduler"]).text_roles


def text_fingerprint_of(name: str) -> str:
    """All that decides the prompt states of a caption, in one line."""
    parts = load_components(find_model(name), roles=["scheduler"])
    fingerprint = fingerprint_of(find_model(name), *parts.text_roles)
    return f"{fingerprint}, zeros for the empty prompt" if parts.has_zero_unconditional else fingerprint
