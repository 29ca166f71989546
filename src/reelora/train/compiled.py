"""Blocks that repeat run compiled code in training: made once for all that are alike, and no more after the first step.

A block is compiled in two regions, up to the input of its second feed-forward product and from there on. Whatever a block
keeps for the backward pass, it runs these same two: what is computed again lies around the first, which is run twice then, and
never in it. So all ways give the same numbers bit for bit here too, and a run may go on with another budget of memory.

Only passes with gradients run compiled code; evaluations and previews run the blocks as they are. Sizes are constants of the
code, made anew for each: code for all sizes would depend on the order in which these are met, and so would the numbers of a
run that goes on.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reelora.components import repeated_blocks
from reelora.errors import ConfigError, first_few
from reelora.lora import FrozenLinear, TrainableLinear, is_hooked

from .config import LoopConfig
from .recompute import Way, Ways, before_feed_forward, before_sum, checkpointed, summed, ways_of

__all__ = ["Blocks", "CompiledBlocks", "PlainBlocks", "blocks_for", "check_compiler", "compiled_rows"]

MAKING: Mapping[str, Any] = {"backend": "inductor", "options": {"deterministic": True}}
"""What makes the code, and how: not by trying out which of several ways of summing is fastest today, on which the numbers of
a run that goes on would depend. Tests put something here that counts."""

_LIMIT = 64
"""Kinds of blocks, times sizes of clips, that code is made for: more are a mistake of somebody's, and each costs a minute."""

Row = tuple[str, str]


class Blocks(Protocol):
    """How the blocks of a model run in a step."""

    def ways_of(self, block: nn.Module, /) -> Ways:
        """The ways in which a block can run: those of `reelora.train.recompute.ways_of`."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """What passes run in, forwards and backwards."""
        ...


class PlainBlocks:
    """As the modules that they are."""

    def ways_of(self, block: nn.Module, /) -> Ways:
        return ways_of(block)

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()


class CompiledBlocks:
    """Those that repeat as compiled code, others as they are.

    Raises ConfigError for a model in which nothing repeats, for blocks that cannot be compiled, and without a compiler.
    """

    def __init__(self, model: nn.Module) -> None:
        self._blocks = frozenset(_compilable(model))
        check_compiler(next(model.parameters()).device)
        self._ways = {split: _ways(*map(_region, regions)) for split, regions in _REGIONS.items()}
        self._any = _any_ways(_region(_called))

    def ways_of(self, block: nn.Module, /) -> Ways:
        if block not in self._blocks:
            return ways_of(block)
        if type(block).__name__ != "CogVideoXBlock":
            return self._any
        return self._ways[_is_split_before_product(block)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Raises ConfigError with the reason where code cannot be made."""
        import torch._functorch.config as partitioning
        from torch._dynamo import config as compiling
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        # Inputs of products that norms and copies make are not kept for the backward pass: a block then keeps no more than
        # the way that keeps everything, which is what memory was planned for.
        with compiling.patch(recompile_limit=_LIMIT), partitioning.patch(ban_recompute_materialized_backward=False):
            try:
                yield
            except FailOnRecompileLimitHit as error:
                raise ConfigError(
                    f"The blocks differ in more than {_LIMIT} ways, sizes of clips counted, and each takes code of its own: "
                    "train on fewer sizes, or set loop.compile = false."
                ) from error
            except TorchDynamoException as error:
                raise ConfigError(f"A block cannot be compiled: {_said(error)}. Set loop.compile = false.") from error


def blocks_for(model: nn.Module, config: LoopConfig) -> Blocks:
    """How the blocks of ``model`` run by the settings."""
    return CompiledBlocks(model) if config.compile else PlainBlocks()


def compiled_rows(model: nn.Module, config: LoopConfig) -> list[Row]:
    """Label and text of the lines to print: what is compiled; none where nothing is."""
    if not config.compile:
        return []
    counts = Counter(type(block).__name__ for block in repeated_blocks(model))
    kinds = ", ".join(f"{count} {name}" for name, count in counts.items())
    return [("compile", f"{kinds}: code for one serves all that are alike, made in the first step for each size of clips")]


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError, with what to install, if no code can be made for a device."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        torch.compile(_probe, fullgraph=True, dynamic=False, **MAKING)(torch.ones(8, device=device))
    except TorchDynamoException as error:
        need = _NEEDS.get(device.type, "a compiler that torch knows")
        raise ConfigError(
            f"loop.compile = true takes {need}, which this machine lacks or cannot run: {_said(error)}. "
            "Install it, or set loop.compile = false."
        ) from error


_NEEDS: Mapping[str, str] = {
    "cpu": "a C++ compiler (g++; on Debian and Ubuntu: apt install g++; the environment variable CXX may name another)",
    "cuda": "triton and a C compiler (pip install triton; on Debian and Ubuntu: apt install gcc)",
}
"""What makes code for a device."""


def _probe(x: Tensor) -> Tensor:
    return x * 2 + 1


def _compilable(model: nn.Module) -> list[nn.Module]:
    blocks = repeated_blocks(model)
    if not blocks:
        raise ConfigError(f"Nobody says which blocks of a {type(model).__name__} repeat: set loop.compile = false.")
    found = {index: why for index, block in enumerate(blocks) if (why := _why_not(block))}
    if found:
        shown = first_few([f"block {index}: {why}" for index, why in found.items()])
        raise ConfigError(f"{len(found)} of {len(blocks)} blocks cannot be compiled ({shown}): set loop.compile = false.")
    return blocks


def _why_not(block: nn.Module) -> str:
    modules = [*block.modules()]
    modules += [module.base for module in modules if isinstance(module, TrainableLinear)]
    return next((why for why, is_so in _OBSTACLES.items() if any(map(is_so, modules))), "")


_OBSTACLES: Mapping[str, Callable[[nn.Module], bool]] = {
    "a hook hangs on it or inside": is_hooked,
    "its weights are made or brought for every use": lambda module: isinstance(module, FrozenLinear),
}
"""What compiled code would have to leave in the middle, or would leave out."""


def _called(block: nn.Module, *inputs: Any) -> Any:
    return block(*inputs)


def _before_product(block: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Up to the input of the second feed-forward product: computed again, this product would be computed for nothing."""
    video, text, shown, gate, text_gate = before_feed_forward(block, {}, *inputs)
    return video, text, block.ff.net[0](shown), gate, text_gate


def _after_product(block: Any, video: Tensor, text: Tensor, wide: Tensor, *gates: Tensor) -> tuple[Tensor, Tensor]:
    for layer in block.ff.net[1:]:
        wide = layer(wide)
    return summed(video, text, wide, *gates)


def _up_to_sum(block: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return before_sum(block, {}, *inputs)


def _sum(block: Any, *terms: Tensor) -> tuple[Tensor, Tensor]:
    return summed(*terms)


_REGIONS: Mapping[bool, tuple[Way, Way]] = {True: (_before_product, _after_product), False: (_up_to_sum, _sum)}
"""The two regions of a block of CogVideoX: by whether it is split before its second product or after it."""


def _is_split_before_product(block: Any) -> bool:
    """Unless that would keep the product's input, four times as wide as the block's: where the product is trained."""
    is_stock = type(block.ff).__name__ == "FeedForward"
    return is_stock and not any(parameter.requires_grad for layer in block.ff.net[1:] for parameter in layer.parameters())


def _region(run: Way) -> Way:
    return torch.compile(run, fullgraph=True, dynamic=False, **MAKING)


def _ways(first: Way, last: Way) -> Ways:
    """The compiler decides by itself what is cheaper made again than kept, so two of these are one."""

    def kept(block: nn.Module, *inputs: Any) -> Any:
        return last(block, *first(block, *inputs))

    def again(block: nn.Module, *inputs: Any, is_attention_kept: bool = False) -> Any:
        return last(block, *checkpointed(first, block, *inputs, is_attention_kept=is_attention_kept))

    return {"everything": kept, "products": kept, "attention": partial(again, is_attention_kept=True), "inputs": again}


def _any_ways(run: Way) -> Ways:
    return {"everything": run, "inputs": partial(checkpointed, run)}


def _said(error: BaseException) -> str:
    """Of what a compiler says, or of what went wrong in it."""
    cause = getattr(error, "inner_exception", error)
    said = next((line.strip().rstrip(".") for line in str(cause).splitlines() if line.strip()), "nothing")
    return f"{type(cause).__name__}: {said}"
