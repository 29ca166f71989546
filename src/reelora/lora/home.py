"""Where pristine weights wait while fused ones are in their place."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from reelora.adapters import split_role
from reelora.errors import ConfigError
from reelora.tensorio import open_tensors

__all__ = ["FreeBytes", "Home", "Reader", "choose_home", "free_bytes", "reader_of"]

Home = Literal["auto", "kept", "host", "file"]
"""Where they were (the fused ones get memory of their own), in the host's memory, or in the checkpoint's file, from which they
are read again; or whichever of these fits first, chosen at the first fuse."""
FreeBytes = Callable[[torch.device], int]
"""How much memory of a device is free."""

Reader = Callable[[str], Tensor]
"""Reads the pristine weight of a site again."""

_ROOM = 2
"""How many times what is needed has to be free, so that as much again is left for what runs beside."""
_HOST = torch.device("cpu")
_SHARES_HOST = ("cpu", "mps")


def choose_home(needed: Mapping[torch.device, int], *, has_file: bool, free: FreeBytes) -> Home:
    """``kept`` where a second set of the weights (bytes by device) fits beside them, else the first other home that has room.

    Where none has, ``file`` if there is one, else the host for weights of an accelerator.
    """
    away = sum(size for device, size in needed.items() if device.type not in _SHARES_HOST)
    fits_beside = all(_ROOM * size <= free(device) for device, size in needed.items())
    fits_host = away > 0 and _ROOM * away <= free(_HOST)
    candidates: tuple[tuple[Home, bool], ...] = (
        ("kept", fits_beside),
        ("host", fits_host),
        ("file", has_file),
        ("host", away > 0),
        ("kept", True),
    )
    return next(home for home, is_right in candidates if is_right)


def free_bytes(device: torch.device) -> int:
    """Free memory of a device now, with what torch holds there and does not use."""
    if device.type in _SHARES_HOST:
        return psutil.virtual_memory().available
    unused = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return torch.accelerator.get_memory_info(device)[0] + unused


def reader_of(home: Home, base: str | Path | None) -> Reader | None:
    """How pristine weights are read again from ``base``, if it is given; ConfigError where it does not go with ``home``."""
    if home == "file" and base is None:
        raise ConfigError("home='file' reads pristine weights again from base=: name the model's folder or safetensors file.")
    if home in ("kept", "host") and base is not None:
        raise ConfigError(f"home={home!r} reads nothing from base=: leave base out, or let home be 'file' or 'auto'.")
    if base is None:
        return None
    tensors = open_tensors(Path(base))
    return lambda name: tensors[f"{split_role(name)[1]}.weight"].clone()
