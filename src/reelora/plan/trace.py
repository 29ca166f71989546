"""What a computation takes, found out without memory: it is run once on torch's meta device, and every tensor is booked.

A formula for each class of network would have to be kept true by hand; this follows the code that really runs.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["Cost", "Work", "trace"]

Work = Literal["product", "attention", "convolution"]
"""Kinds of arithmetic, each with a speed of its own."""

_ATEN = torch.ops.aten
_FLASH = _ATEN._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward
_KINDS: Mapping[Any, Work] = {
    _FLASH: "attention",
    _FLASH_BACKWARD: "attention",
    _ATEN.convolution: "convolution",
    _ATEN.convolution_backward: "convolution",
}
"""Of operations that are no plain product."""


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
    """Run ``compute`` on tensors of the meta device; what it takes follows from their shapes and dtypes alone.

    Storages that are there before count as weights or inputs, and not here. What a kernel takes for itself while it runs is
    not seen; on a CPU that is next to nothing.
    """
    ledger = _Ledger()
    with _flash_attention(), ledger:
        result = compute()
    kept = ledger.live
    del result
    return Cost(peak_bytes=ledger.peak, kept_bytes=kept, flops=dict(ledger.flops), calls=ledger.calls)


class _Ledger(TorchDispatchMode):
    """Books every new storage until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.calls = 0
        self.flops: Counter[Work] = Counter()
        self._booked: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **kwargs)
        for output in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            self._book(output, known)
        self.peak = max(self.peak, self.live)
        self.calls += 1
        operation = func.overloadpacket
        if number := _flops(operation, args, kwargs, result):
            self.flops[_KINDS.get(operation, "product")] += number
        return result

    def _book(self, output: Tensor, known: set[int]) -> None:
        storage = output.untyped_storage()
        if storage._cdata in known or storage in self._booked:
            return
        self._booked[storage] = size = storage.nbytes()
        self.live += size
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _flops(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    if operation is _FLASH:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if operation is _FLASH_BACKWARD:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    formula = flop_registry.get(operation)
    return formula(*args, **kwargs, out_val=result) if formula else 0


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Attention on the meta device that never holds the table of all pairs, as no device holds it; torch would take the other.

    The name in torch itself is replaced for the length of the block, since what a checkpoint computes again in the backward
    pass runs outside any mode; tensors of other devices go where they always go.
    """
    place, name = torch.nn.functional, "scaled_dot_product_attention"
    stock = getattr(place, name)

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        if not query.is_meta:
            return stock(query, key, value, attn_mask, *rest, **named)
        return _FLASH(query, key, value, attn_mask=attn_mask, scale=named.get("scale"))[0]

    setattr(place, name, attend)
    try:
        yield
    finally:
        setattr(place, name, stock)
