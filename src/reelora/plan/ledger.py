"""The bytes and the operations of whatever runs: every tensor is booked from its making to its end.

A formula for each class of network would have to be kept true by hand; this follows the code that really runs. It runs on
tensors without memory: a generation on torch's meta device (`trace`), the blocks of a training step on fake tensors, which keep
their device, so that the kernels of attention are chosen as on it (`rehearse`).
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["Ledger", "Work"]

Work = Literal["product", "attention", "convolution"]
"""Kinds of arithmetic, each with a speed of its own."""


class Ledger(TorchDispatchMode):
    """Books every storage that is made inside until it is freed, and counts operations.

    Storages that are there before count as weights or inputs, and not here. What a kernel takes for itself while it runs is
    not seen; on a CPU that is next to nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes now."""
        self.peak = 0
        """The most of them at once."""
        self.calls = 0
        """Operations, each of which is begun from Python."""
        self.flops: Counter[Work] = Counter()
        """By kind of arithmetic, two for each multiplication with addition."""
        self._booked: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count nothing of what is done inside but what is still alive afterwards."""
        peak, calls, flops = self.peak, self.calls, self.flops.copy()
        try:
            yield
        finally:
            self.peak, self.calls, self.flops = max(peak, self.live), calls, flops

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace == "prim":  # a fake tensor is asked for its device
            return result
        if not func.is_view:  # a view of a real weight, as a fake tensor, has a storage that nobody knows
            known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            for output in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
                self._book(output, known)
            self.peak = max(self.peak, self.live)
        self.calls += 1
        if formula := _FORMULAS.get(func.overloadpacket):
            self.flops[_kind(func.overloadpacket)] += formula(*args, **kwargs, out_val=result)
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


def _kind(operation: Any) -> Work:
    return next(kind for kind, words in _WORDS.items() if words in operation.__name__)


_WORDS: Mapping[Work, str] = {"attention": "attention", "convolution": "convolution", "product": ""}
"""What the names of their operations have in them; all others that have a formula are products."""


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: object, out_val: object, **kwargs: object) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: object, out_val: object, **kwargs: object
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""torch's counts of operations, and what it lacks."""
