"""What a step will take, found out by running it on tensors without memory.

The model's own modules run on torch's fake tensors: shapes, dtypes and the graph are real, values and memory are not. So
whatever is attached, quantised or hooked counts as it is, on any device, in tens of milliseconds for a block of each kind, and
before anything is allocated.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.autograd.graph import get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from reelora.errors import ConfigError

from .recompute import Kept, Way, ways_of

__all__ = ["Cost", "Rehearsal", "rehearse"]

ALL_WAYS: Sequence[Kept] = get_args(Kept)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one block takes in one of its ways."""

    kept_bytes: int
    """That lie between its forward and its backward pass, its inputs included where these are kept."""
    forward_bytes: int
    """Beside the kept ones at the most during its forward pass, inputs and results included."""
    backward_bytes: int
    """Beside the kept ones at the most during its backward pass, with gradients of its results and inputs, not of weights."""
    operations: int
    """Floating-point operations of the matrix products and of the attention in both passes."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A step of a model whose blocks were tried in all their ways."""

    blocks: Mapping[nn.Module, Mapping[Kept, Cost]]
    """In the order in which they run."""
    rest_bytes: int
    """What the model keeps outside of its blocks, its result included."""


_NOT_REHEARSED = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""Where a module looks at values, or calls a kernel of its own that says nothing of shapes."""


def rehearse(model: Any, run: Callable[[], Tensor], *, ways: Collection[Kept] = ALL_WAYS) -> Rehearsal:
    """Find out what the blocks of ``model`` take in a step that begins with ``run``, which calls the model; each block is
    tried in those of the ``ways`` that it has.

    Nothing is computed, and nothing of the model changes, but that gradient checkpointing is off afterwards. Raises ConfigError
    for a model that cannot run on tensors without values.
    """
    stage = _Stage(ways)
    model.enable_gradient_checkpointing(stage)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad(), _Watch() as watch:
            result = run()
            rest_bytes = watch.bytes_now()
            del result
    except _NOT_REHEARSED as error:
        raise ConfigError(
            f"What a step of this {type(model).__name__} takes cannot be found out beforehand: {error}. "
            "Write loop.gradient_checkpointing = true (less memory) or false (less time)."
        ) from error
    finally:
        model.disable_gradient_checkpointing()
    return Rehearsal(blocks=stage.costs, rest_bytes=rest_bytes)


class _Stage:
    """Takes the place of the checkpointing function: tries every block, those that are alike only once."""

    def __init__(self, ways: Collection[Kept]) -> None:
        self._wanted = ways
        self.costs: dict[nn.Module, Mapping[Kept, Cost]] = {}
        self._known: dict[object, tuple[Mapping[Kept, Cost], Any]] = {}
        """Costs and results by what makes blocks alike."""

    def __call__(self, block: nn.Module, *inputs: Any) -> Any:
        key = _likeness(block, inputs)
        if key not in self._known:
            costs: dict[Kept, Cost] = {
                kept: _cost(way, block, inputs) for kept, way in ways_of(block).items() if kept in self._wanted
            }
            with torch.no_grad():
                self._known[key] = costs, tree_map_only(Tensor, _blueprint, block(*inputs))
        self.costs[block], results = self._known[key]
        return tree_map_only(_Blueprint, _built, results)


@dataclass(frozen=True)
class _Blueprint:
    """What a tensor is made like."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _blueprint(tensor: Tensor) -> _Blueprint:
    return _Blueprint(tensor.size(), tensor.stride(), tensor.dtype, tensor.device)


def _built(like: _Blueprint) -> Tensor:
    made = torch.empty_strided(like.size, like.stride, dtype=like.dtype, device=like.device)
    return made.requires_grad_(like.dtype.is_floating_point)


def _likeness(block: nn.Module, inputs: Sequence[Any]) -> object:
    """Equal for blocks that take the same."""
    tensors = [*block.state_dict(keep_vars=True).items(), *enumerate(tree_leaves(inputs))]
    facts = [(name, t.shape, t.dtype, t.requires_grad) for name, t in tensors if isinstance(t, Tensor)]
    return type(block), tuple(ways_of(block)), tuple(facts)


def _cost(way: Way, block: nn.Module, inputs: Sequence[Any]) -> Cost:
    """That of one pass in each direction, with inputs of its own."""
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    with _Watch() as watch:
        own = tree_map_only(Tensor, lambda t: torch.empty_like(t).requires_grad_(t.requires_grad), tuple(inputs))
        sources: list[Any] = [get_gradient_edge(t) for t in tree_leaves(own) if isinstance(t, Tensor) and t.requires_grad]
        results = [t for t in tree_leaves(way(block, *own)) if isinstance(t, Tensor) and t.requires_grad]
        forward_peak = watch.peak
        ends, shapes = [get_gradient_edge(t) for t in results], [_blueprint(t) for t in results]
        del own, results
        kept = watch.bytes_now()
        watch.peak = kept
        if ends:
            grads = [_built(like).requires_grad_(False) for like in shapes]
            torch.autograd.grad(ends, sources or trained, grads, allow_unused=True)
    return Cost(
        kept_bytes=kept,
        forward_bytes=forward_peak - kept,
        backward_bytes=watch.peak - kept,
        operations=watch.operations,
    )


class _Watch(TorchDispatchMode):
    """Counts the memory of everything that is made inside, as long as it lives, and the operations that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.operations = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def bytes_now(self) -> int:
        """Of what is alive; parameters do not count."""
        self._alive = {held: size for held, size in self._alive.items() if not held.expired()}
        return sum(self._alive.values())

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=results)
        if not func.is_view:
            for result in tree_leaves(results):
                if isinstance(result, Tensor):
                    storage = result.untyped_storage()
                    self._alive[StorageWeakRef(storage)] = storage.nbytes()
            self.peak = max(self.peak, self.bytes_now())
        return results


def _attention_operations(query: Tensor, key: Tensor, value: Tensor, *args: object, out_val: object, **kwargs: object) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_operations(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: object, out_val: object, **kwargs: object
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_COUNTS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_operations,
}
"""torch's counts of operations, and what it lacks."""
