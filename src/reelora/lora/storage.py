"""Forms in which the weights of frozen layers are kept, and back to the numbers that layers compute with.

A form is a pair of functions. What it keeps of a weight takes less memory, and what comes back is the same each time: a model
whose weights were replaced by what comes back computes the same, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from reelora.errors import ConfigError

__all__ = ["FORMS", "Form", "Storage", "check_storage"]

Storage = Literal["precision", "fp8", "int8", "nf4"]
"""precision: the numbers that layers compute with. fp8: float8_e4m3 with a scale, a power of two, for each row; one byte per
number. int8: whole numbers with a scale for each row, which is finer than fp8 for weights and as large. nf4: four bits with a
scale for every 64 numbers, by bitsandbytes (QLoRA, arXiv:2305.14314, section 3)."""

Parts = Sequence[Tensor]
"""What is kept of one weight."""

_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
"""The largest e4m3 number; beyond it casts give NaN."""
_INT8_MAX = 127
_LEAST_EXPONENT = -120
"""Of a scale, so that it is a normal number in bfloat16 and float32."""
_BLOCK = 64
"""Numbers that share a scale in nf4."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a weight ``(out, in)`` is kept."""

    pack: Callable[[Tensor], Parts]
    unpack: Callable[[Parts, torch.Size, torch.dtype], Tensor]
    """The weight of this shape and dtype again."""
    nbytes: Callable[[torch.Size, int], int]
    """That a weight of this shape and so many bytes for each number takes, without packing it."""
    is_exact: bool = False
    needs: str = ""
    """A package that has to be installed."""


def check_storage(storage: Storage) -> None:
    """Raise ConfigError that names the package to install where the form needs one that is not here."""
    needed = FORMS[storage].needs
    if needed and find_spec(needed) is None:
        raise ConfigError(f"base.storage {storage} is made by {needed}, which is not installed: `pip install {needed}`.")


def _as_it_is(weight: Tensor) -> Parts:
    return (weight,)


def _the_weight(parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return parts[0]


def _largest(weight: Tensor) -> Tensor:
    """Of each row, as a column."""
    return weight.abs().amax(dim=1, keepdim=True).float()


def _to_fp8(weight: Tensor) -> Parts:
    """With scales that are powers of two, by which multiplying is exact: all rounding is that of the cast."""
    exponent = torch.frexp(_largest(weight) / _FP8_MAX).exponent.clamp_min(_LEAST_EXPONENT)
    scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
    return (weight.float() / scale).to(_FP8), scale.to(weight.dtype)


def _to_int8(weight: Tensor) -> Parts:
    """With scales that are rounded to the dtype of the weight before they are divided by, so that this rounding is no error."""
    scale = (_largest(weight) / _INT8_MAX).clamp_min(2.0**_LEAST_EXPONENT).to(weight.dtype)
    return (weight.float() / scale.float()).round().clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8), scale


def _times_scale(parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    numbers, scale = parts
    return numbers.to(dtype).mul_(scale)


def _nf4() -> Any:
    """bitsandbytes' operations, which torch knows once it is imported."""
    import_module("bitsandbytes")
    return torch.ops.bitsandbytes


def _to_nf4(weight: Tensor) -> Parts:
    packed, largest = _nf4().quantize_4bit(weight.contiguous(), _BLOCK, "nf4", torch.uint8)
    return packed, largest


def _from_nf4(parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    packed, largest = parts
    return _nf4().dequantize_4bit(packed, largest, _BLOCK, "nf4", shape, dtype)


def _byte_each(shape: torch.Size, itemsize: int) -> int:
    return shape.numel() + shape[0] * itemsize


def _nf4_bytes(shape: torch.Size, itemsize: int) -> int:
    return -(-shape.numel() // 2) + 4 * -(-shape.numel() // _BLOCK)


FORMS: Mapping[Storage, Form] = {
    "precision": Form(
        pack=_as_it_is, unpack=_the_weight, nbytes=lambda shape, itemsize: shape.numel() * itemsize, is_exact=True
    ),
    "fp8": Form(pack=_to_fp8, unpack=_times_scale, nbytes=_byte_each),
    "int8": Form(pack=_to_int8, unpack=_times_scale, nbytes=_byte_each),
    "nf4": Form(pack=_to_nf4, unpack=_from_nf4, nbytes=_nf4_bytes, needs="bitsandbytes"),
}
