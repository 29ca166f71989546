"""What a computation takes, found out without memory: it is run once on torch's meta device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .ledger import Ledger, Work

__all__ = ["Cost", "trace"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one computation takes; costs add up as if one came after the other."""

    peak_bytes: int = 0
    """The most bytes at once, beside the weights and the inputs."""
    kept_bytes: int = 0
    """What is still held when it is done: the result, and what a backward pass needs."""
    flops: Mapping[Work, int] = field(default_factory=dict)
    """By kind of arithmetic, two for each multiplication with addition."""
    calls: int = 0
    """Operations, each of which is begun from Python."""

    def repeated(self, times: float) -> "Cost":
        """The work of doing it several times, in the memory of once."""
        flops: dict[Work, int] = {kind: round(times * number) for kind, number in self.flops.items()}
        calls = round(times * self.calls)
        return Cost(peak_bytes=self.peak_bytes, kept_bytes=self.kept_bytes, flops=flops, calls=calls)

    def extended(self, other: "Cost", times: float) -> "Cost":
        """What ``times`` steps beyond ``self`` take, where ``other`` is one step more than ``self``: layers, or frames."""
        return Cost(
            peak_bytes=_along(self.peak_bytes, other.peak_bytes, times),
            kept_bytes=_along(self.kept_bytes, other.kept_bytes, times),
            flops={kind: _along(self.flops.get(kind, 0), number, times) for kind, number in other.flops.items()},
            calls=_along(self.calls, other.calls, times),
        )


def _along(first: int, second: int, times: float) -> int:
    return first + round(times * (second - first))


def trace(compute: Callable[[], Any]) -> Cost:
    """Run ``compute`` on tensors of the meta device; what it takes follows from their shapes and dtypes alone, as `Ledger`
    books it.
    """
    ledger = Ledger()
    with _FlashAttention(), ledger:
        result = compute()
    kept = ledger.live
    del result
    return Cost(peak_bytes=ledger.peak, kept_bytes=kept, flops=dict(ledger.flops), calls=ledger.calls)


class _FlashAttention(TorchFunctionMode):
    """Attention on the meta device that holds no table of all pairs, as no device holds it; torch would take the other."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(stock: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **named: Any) -> Any:
    if not query.is_meta:
        return stock(query, key, value, attn_mask, *rest, **named)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, attn_mask=attn_mask, scale=named.get("scale"))[0]
