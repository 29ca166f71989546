"""What to compute on and how precisely, where the user leaves it open."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from reelora.errors import ConfigError, nearest

__all__ = ["DTYPES", "Precision", "check_precision", "devices_here", "find_device", "find_dtype", "name_of_dtype"]

Precision = Literal["auto", "bf16", "fp16", "fp32"]

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check_precision(name: str) -> Precision:
    """The precision called ``name``; ConfigError names the nearest one."""
    for precision in get_args(Precision):
        if name == precision:
            return precision
    raise ConfigError(f"There is no precision {name!r}: {nearest(name, get_args(Precision))}")


def find_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first accelerator, else the CPU.

    Raises ConfigError for a device that this machine (or this build of torch) does not have, with those that it has.
    """
    here = devices_here()
    if name == "auto":
        return torch.device(here[0])
    if name not in here and f"{name}:0" not in here:
        raise ConfigError(f"There is no device {name!r} here: write auto, or one of {', '.join(here)}.")
    return torch.device(name)


def find_dtype(precision: Precision, device: torch.device, *, is_trained: bool = False) -> torch.dtype:
    """The dtype of the base. ``auto`` is bfloat16 where the device computes in it at speed, else float32.

    Raises ConfigError for float16 in training: gradients through a float16 base underflow without loss scaling, and what lies
    between the blocks of a model that was released in bfloat16 overflows.
    """
    if precision == "auto":
        precision = "bf16" if _is_fast_in_bf16(device) else "fp32"
    if precision == "fp16" and is_trained:
        raise ConfigError(
            "precision fp16 cannot be trained in: its range is too small for gradients, which become 0, and for models that "
            "were released in bfloat16, such as CogVideoX-5B, whose values become infinite. Use bf16 or fp32."
        )
    return DTYPES[precision]


def name_of_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def devices_here() -> list[str]:
    """Accelerators first, the CPU last."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [*(f"{kind.type}:{index}" for index in range(torch.accelerator.device_count()) if kind), "cpu"]


def _is_fast_in_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
