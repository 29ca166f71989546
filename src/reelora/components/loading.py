"""Loads one role from where it was found, whatever its class."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from reelora.errors import ComponentError

from .folder import Source
from .roles import TEXT_ROLES
from .weights import load_network

__all__ = ["load_part"]


def load_part(source: Source, *, dtype: torch.dtype | None, device: torch.device) -> Any:
    """The part that a source describes; see `load_network` for those that have weights.

    Raises ComponentError where the files make no such part.
    """
    load = _LOADERS.get(source.role)
    return load(source) if load else load_network(source, dtype=dtype, device=device)


def _load_tokenizer(source: Source) -> Any:
    import transformers

    try:
        return getattr(transformers, source.class_name).from_pretrained(source.folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ComponentError(f"{source.role}: {source.folder} makes no {source.class_name}: {error}") from error


def _load_scheduler(source: Source) -> Any:
    """The scheduler of the folder; for CogVideoX always the DPM one, which trains and samples alike.

    The published 2B names the DDIM scheduler, whose config has the same values: they describe the noise, not the solver.
    """
    import diffusers

    name = _SAME_NOISE.get(source.class_name, source.class_name)
    try:
        return getattr(diffusers, name).from_config(dict(source.config))
    except _IMPOSSIBLE as error:
        raise ComponentError(f"scheduler: {source.folder} makes no {name}: {error}") from error


_IMPOSSIBLE = (ValueError, TypeError, RuntimeError)
"""What schedulers raise for impossible values: of an unknown beta_schedule NotImplementedError, which is a RuntimeError."""
_SAME_NOISE = {"CogVideoXDDIMScheduler": "CogVideoXDPMScheduler"}
_LOADERS: Mapping[str, Callable[[Source], Any]] = {
    **{tokenizer: _load_tokenizer for tokenizer, _ in TEXT_ROLES},
    "scheduler": _load_scheduler,
}
