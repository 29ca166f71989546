"""What to compute on and how precisely, where the user leaves it open."""

from typing import Literal, get_args

import torch

from reelora.errors import ConfigError, nearest

__all__ = ["Precision", "check_precision", "find_device", "find_dtype"]

Precision = Literal["auto", "bf16", "fp32"]


def check_precision(name: str) -> Precision:
    """The precision called ``name``; ConfigError names the nearest one."""
    for precision in get_args(Precision):
        if name == precision:
            return precision
    raise ConfigError(f"There is no precision {name!r}: {nearest(name, get_args(Precision))}")


def find_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first accelerator, else the CPU."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError:
            raise ConfigError(f"There is no device {name!r}: write auto, cpu, cuda, cuda:1 or mps.") from None
    if torch.accelerator.is_available():
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    return torch.device("cpu")


def find_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the frozen base: bfloat16 where the device computes in it at speed, else float32."""
    if precision == "auto":
        precision = "bf16" if _is_fast_in_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _is_fast_in_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
