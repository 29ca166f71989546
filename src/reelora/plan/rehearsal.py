"""What a step of training will take, found out by running it on tensors without memory.

The model's own modules run on torch's fake tensors: shapes, dtypes, devices and the graph are real, values and memory are not.
So whatever is attached, quantised or hooked counts as it is, on any device, in tens of milliseconds for a block of each kind,
and before anything is allocated.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from reelora.errors import ConfigError

from .ledger import Ledger, Work

__all__ = ["BlockCost", "Name", "Rehearsal", "Way", "fake_tensors", "rehearse"]

Name = TypeVar("Name", bound=str)
"""What the ways in which a block can run are called."""
Way = Callable[..., Any]
"""A block and what it is called with, to its result."""


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What one block takes in one of its ways."""

    kept_bytes: int
    """That lie between its forward and its backward pass, its inputs included where these are kept and its own."""
    forward_bytes: int
    """Beside the kept ones at the most during its forward pass, inputs and results included."""
    backward_bytes: int
    """Beside the kept ones at the most during its backward pass, with the gradients of its results, inputs and weights."""
    gradient_bytes: int = 0
    """Of its trained weights; they stay."""
    flops: Mapping[Work, int] = field(default_factory=dict)
    """Of both passes, by kind of arithmetic."""
    calls: int = 0
    """Operations in both passes, each of which is begun from Python."""

    @property
    def operations(self) -> int:
        """Floating-point operations of the matrix products and of the attention in both passes."""
        return sum(self.flops.values())


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Generic[Name]):
    """A step of a model whose blocks were tried in their ways."""

    blocks: Mapping[nn.Module, Mapping[Name, BlockCost]]
    """In the order in which they run; their ways from the most memory to the least."""
    rest_bytes: int
    """What the model keeps outside of its blocks while these run, what several of them are told included."""
    tail_bytes: int = 0
    """What it keeps after the last of them, results included: before their backward pass begins it is gone."""
    outside_bytes: Mapping[nn.Module, int] = field(default_factory=dict)
    """What lies outside of the blocks during the backward pass of each, gradients that wait for earlier blocks included."""
    rest_gradient_bytes: int = 0
    """Of trained weights outside of its blocks."""
    rest_flops: Mapping[Work, int] = field(default_factory=dict)
    """Outside of the blocks."""
    rest_calls: int = 0

    @property
    def gradient_bytes(self) -> int:
        """Of all trained weights."""
        first = (next(iter(costs.values()), None) for costs in self.blocks.values())
        return self.rest_gradient_bytes + sum(cost.gradient_bytes for cost in first if cost is not None)


_NOT_REHEARSED = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""Where a module looks at values, or calls a kernel of its own that says nothing of shapes."""


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make tensors without memory inside; real ones count as fake ones of their shape. Blocks of it may lie in each other."""
    with detect_fake_mode() or FakeTensorMode(allow_non_fake_inputs=True):
        yield


def rehearse(
    model: Any,
    run: Callable[[], Tensor],
    ways_of: Callable[[nn.Module], Mapping[Name, Way]],
    *,
    wanted: Collection[Name] | None = None,
) -> Rehearsal[Name]:
    """Find out what the blocks of ``model`` take in a step that begins with ``run``, which calls the model; each block is
    tried in all the ways that ``ways_of`` says it has, or in those of them that are ``wanted``.

    Nothing is computed, and nothing of the model changes, but that gradient checkpointing is off afterwards. Raises ConfigError
    for a model that cannot run on tensors without values.
    """
    ledger = Ledger()
    stage = _Stage(ledger)
    model.enable_gradient_checkpointing(stage)
    try:
        with fake_tensors(), torch.enable_grad():
            with ledger:
                result = run()
                tail_bytes = ledger.live - stage.live
                told = stage.forget_inputs()
                rest_bytes = ledger.live - tail_bytes
                end, like = get_gradient_edge(result), _blueprint(result)
                del result
                stage.go_back_from(end, like)
            costs = _tried(told, ways_of, wanted)
    except _NOT_REHEARSED as error:
        raise ConfigError(
            f"What a step of this {type(model).__name__} takes cannot be found out beforehand: {error}. "
            "Write loop.gradient_checkpointing = true (less memory) or false (less time)."
        ) from error
    finally:
        model.disable_gradient_checkpointing()
    return Rehearsal(
        blocks=costs,
        rest_bytes=rest_bytes,
        tail_bytes=tail_bytes,
        outside_bytes=stage.outside_bytes,
        rest_gradient_bytes=_trained_bytes(model) - sum(_trained_bytes(block) for block in costs),
        rest_flops=dict(ledger.flops),
        rest_calls=ledger.calls,
    )


Told = Sequence[tuple[nn.Module, tuple[Any, ...]]]
"""Blocks in the order in which they run, with what they are called with: what several of them are told as it is, of all else
what it is like."""


class _Stage:
    """Takes the place of the checkpointing function: hears what every block is called with, and runs alike blocks once."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.live = 0
        """Bytes when the last block was to begin."""
        self.outside_bytes: dict[nn.Module, int] = {}
        self._heard: list[tuple[nn.Module, tuple[Any, ...]]] = []
        self._known: dict[object, Any] = {}
        """Results by what makes blocks alike."""

    def __call__(self, block: nn.Module, *inputs: Any) -> Any:
        self._heard.append((block, inputs))
        self.live = self._ledger.live
        key = _likeness(block, inputs)
        if key not in self._known:
            with self._ledger.aside(), torch.no_grad():
                self._known[key] = tree_map_only(Tensor, _blueprint, block(*inputs))
        likes, tree = tree_flatten(self._known[key])
        return tree_unflatten(_Stub.apply(self, block, likes, self._anchor, *_tensors(inputs)), tree)

    @cached_property
    def _anchor(self) -> Tensor:
        """What every block seems to depend on, so that its backward pass comes."""
        return torch.zeros((), requires_grad=True)

    def go_back_from(self, end: Any, like: "_Blueprint") -> None:
        """Run the backward pass of what lies outside of the blocks, from the end of the graph."""
        torch.autograd.grad([end], [self._anchor], [_built(like).requires_grad_(False)], allow_unused=True)

    def comes_back_to(self, block: nn.Module, results: Sequence["_Blueprint"]) -> None:
        """The gradients of these results are there, which count as the block's."""
        self.outside_bytes[block] = self._ledger.live - sum(like.nbytes for like in results)

    def forget_inputs(self) -> Told:
        """What was heard, with inputs that go to a single block let go of."""
        held = Counter(memory for _, inputs in self._heard for memory in {_memory(tensor) for tensor in _tensors(inputs)})
        told = [
            (block, tree_map_only(Tensor, lambda t: t if held[_memory(t)] > 1 else _blueprint(t), inputs))
            for block, inputs in self._heard
        ]
        self._heard.clear()
        return told


def _tried(
    told: Told, ways_of: Callable[[nn.Module], Mapping[Name, Way]], wanted: Collection[Name] | None
) -> dict[nn.Module, Mapping[Name, BlockCost]]:
    """What every block takes; those that are alike are tried once."""
    known: dict[object, Mapping[Name, BlockCost]] = {}
    found: dict[nn.Module, Mapping[Name, BlockCost]] = {}
    for block, inputs in told:
        ways = ways_of(block)
        key = _likeness(block, inputs), tuple(ways)
        if key not in known:
            known[key] = {name: _cost(way, block, inputs) for name, way in ways.items() if wanted is None or name in wanted}
        found[block] = known[key]
    return found


@dataclass(frozen=True)
class _Blueprint:
    """What a tensor is made like."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class _Stub(torch.autograd.Function):
    """Stands for a block in what lies outside of the blocks: gives results and gradients, and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, stage: _Stage, block: nn.Module, likes: Sequence[_Blueprint], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.told = stage, block, likes, [_blueprint(tensor) for tensor in inputs]
        return tuple(_built(like).requires_grad_(False) for like in likes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        stage, block, likes, inputs = ctx.told
        stage.comes_back_to(block, likes)
        needed = zip(inputs, ctx.needs_input_grad[3:], strict=True)
        return None, None, None, *(_built(like).requires_grad_(False) if is_needed else None for like, is_needed in needed)


def _blueprint(tensor: Tensor) -> _Blueprint:
    return _Blueprint(tensor.size(), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)


def _built(like: _Blueprint) -> Tensor:
    made = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=like.device)
    return made.requires_grad_(like.requires_grad)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _likeness(block: nn.Module, inputs: Sequence[Any]) -> object:
    """Equal for blocks that take the same."""
    tensors: list[tuple[object, Any]] = [*block.state_dict(keep_vars=True).items(), *enumerate(tree_leaves(inputs))]
    facts = [
        (name, type(like) is _Blueprint, like.shape, like.dtype, like.requires_grad)
        for name, like in tensors
        if isinstance(like, Tensor | _Blueprint)
    ]
    return type(block), tuple(facts)


def _trained_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)


def _cost(way: Way, block: nn.Module, inputs: Sequence[Any]) -> BlockCost:
    """That of one pass in each direction."""
    trained: list[Any] = [parameter for parameter in block.parameters() if parameter.requires_grad]
    with Ledger() as ledger:
        own = tree_map_only(_Blueprint, _built, tuple(inputs))
        sources: list[Any] = [get_gradient_edge(tensor) for tensor in _tensors(own) if tensor.requires_grad]
        results = [tensor for tensor in _tensors(way(block, *own)) if tensor.requires_grad]
        forward_peak = ledger.peak
        ends, shapes = [get_gradient_edge(tensor) for tensor in results], [_blueprint(tensor) for tensor in results]
        del own, results
        kept = ledger.peak = ledger.live
        if ends and (sources or trained):
            gradients = [_built(like).requires_grad_(False) for like in shapes]
            gained = torch.autograd.grad(ends, [*sources, *trained], gradients, allow_unused=True)
            del gained
    return BlockCost(
        kept_bytes=kept,
        forward_bytes=forward_peak - kept,
        backward_bytes=ledger.peak - kept,
        gradient_bytes=sum(parameter.nbytes for parameter in trained),
        flops=dict(ledger.flops),
        calls=ledger.calls,
    )
