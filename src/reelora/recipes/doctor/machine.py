"""What this machine can do: versions, devices, precision, codecs."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from reelora import __version__
from reelora.recipes.machine import devices_here, find_device, find_dtype, name_of_dtype

__all__ = ["examine_machine"]

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "av", "peft", "bitsandbytes", "torchao")
_CODEC = "libx264"
"""Writes the videos."""


def examine_machine() -> dict[str, object]:
    """Versions of everything that matters here, the devices with their memory, and what ``auto`` chooses."""
    device = find_device("auto")
    return {
        "reelora": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "devices": [_described(name) for name in devices_here()],
        "device auto": str(device),
        "precision auto": name_of_dtype(find_dtype("auto", device)),
        "threads": torch.get_num_threads(),
        "mp4": "can be written" if _has_codec() else f"cannot be written: this build of av has no {_CODEC}; write gif or png",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _described(name: str) -> str:
    if name == "cpu":
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"cpu ({os.cpu_count()} cores, {_gibibytes(size)})"
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        return f"{name} ({properties.name}, {_gibibytes(properties.total_memory)})"
    return name


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"


def _has_codec() -> bool:
    import av

    return _CODEC in av.codecs_available
