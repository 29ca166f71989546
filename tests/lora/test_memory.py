"""What fusing and restoring take of memory: the fused weights and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from sides import PATH
from test_using import adapter_for
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reelora.lora import Rack


class Allocations(TorchDispatchMode):
    """Notes every piece of memory that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {storage._cdata for storage in storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        made = [storage for storage in storages(out) if storage._cdata not in known]
        self._made |= {storage._cdata: (StorageWeakRef(storage), storage.nbytes()) for storage in made}
        return out

    @property
    def made_bytes(self) -> int:
        """Of all that was made."""
        return sum(size for _, size in self._made.values())

    @property
    def alive_bytes(self) -> int:
        """Of what somebody still holds."""
        return sum(size for held, size in self._made.values() if not held.expired())


def storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def fused_rack(model):
    rack = Rack(model, home="kept")
    rack.load("one", adapter_for(model, dtype=torch.bfloat16))
    rack.load("two", adapter_for(model, seed=1))
    rack.fuse()
    return rack


def bytes_of_weights(model, rack):
    return sum(model.get_submodule(name.partition(".")[2]).weight.nbytes for name in rack.state.lost)


def test_the_first_fuse_takes_as_much_memory_as_the_weights_that_it_fuses(transformer):
    rack = fused_rack(transformer.bfloat16())
    with Allocations() as made:
        rack.activate({"one": 1.0})
    expected = bytes_of_weights(transformer, rack)
    assert made.alive_bytes == rack.state.buffer_bytes == expected == 8 * 32 * 32 * 2


def test_every_further_fuse_takes_none(transformer):
    rack = fused_rack(transformer.bfloat16())
    rack.activate({"one": 1.0})
    with Allocations() as made:
        rack.activate({"two": 0.5, "one": -1.0})
    assert made.alive_bytes == 0


def test_restoring_moves_pointers_and_no_bytes(transformer):
    place = transformer.get_submodule(PATH).weight.data_ptr()
    rack = fused_rack(transformer)
    rack.activate({"two": 1.0})
    assert transformer.get_submodule(PATH).weight.data_ptr() != place
    with Allocations() as made:
        rack.activate({})
    assert made.made_bytes == 0
    assert transformer.get_submodule(PATH).weight.data_ptr() == place
