"""The frozen weights of a model split over processes: each keeps a part, and a block is whole only while it computes.

torch's FSDP2 does the splitting and the gathering. What is trained is left to every process, whole.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from reelora.errors import ConfigError, first_few

from .branch import StandIn, is_hooked

__all__ = ["held_base_bytes", "is_sharded", "shard_base", "sharded_base_bytes"]

_GATHERED_AT_ONCE = 2
"""Blocks that are whole at the same time: the one that computes and the one that comes next."""

_PLAIN = (nn.Parameter, Tensor)
"""What offloading and quantisers make instead are classes of their own."""


def shard_base(model: nn.Module, device: torch.device) -> None:
    """Leave to this process its part of the frozen weights of ``model``, on ``device``; the process group must be there.

    The innermost modules that diffusers says must stay whole are split, each weight along its first axis. They are taken to
    ``device`` one by one, so that it never holds the whole base. The rest (0.1 % of CogVideoX-5B) and what
    requires gradients are moved there and stay whole on every process. From now on all processes have to call the model
    equally often and in step, backward passes included: a block is gathered from all of them. Results and gradients are those
    of the whole model, bit for bit. There is no way back: the whole may fit nowhere.

    Raises ConfigError for a model that does not say what must stay whole, and for one whose weights are offloaded, packed or
    in 8 bits; then nothing has changed.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _check(model)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    # Linear layers end in a view. Nobody writes into one in place, which is what FSDP warns of at every forward.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    for unit in _units_of(model):
        for module in unit:
            for parameter in module.parameters():
                parameter.data = parameter.data.contiguous()
        # Its parts and not the block: whoever computes parts of it again in the backward pass calls these, not the block.
        fully_shard(unit, mesh=mesh, ignored_params=trained)
        for module in unit:
            _hand_down(module)
    _move_whole(model, device)
    whole = {parameter for parameter in model.parameters() if not _is_split(parameter)}
    fully_shard(model, mesh=mesh, ignored_params=whole)


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of ``model`` are split over processes."""
    return any(map(_is_split, model.parameters()))


def held_base_bytes(model: nn.Module) -> int:
    """Of the frozen weights and buffers, those that this process holds while nothing is gathered."""
    held = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return sum(_local(tensor).nbytes for tensor in (*held, *model.buffers()))


def sharded_base_bytes(model: nn.Module, num_processes: int) -> int:
    """What each of so many processes would hold of the base of ``model``, with the blocks that are whole at a time."""
    units = [sum(p.nbytes for module in unit for p in module.parameters() if not p.requires_grad) for unit in _units_of(model)]
    return held_base_bytes(model) - sum(units) + sum(units) // num_processes + _GATHERED_AT_ONCE * max(units, default=0)


def _check(model: nn.Module) -> None:
    """Raise ConfigError unless ``model`` can be split, with everything that is in the way."""
    units = _units_of(model)
    if not units:
        raise ConfigError(
            f"A {type(model).__name__} cannot be split over processes, since it does not say which of its modules must stay "
            "whole (_no_split_modules). Leave loop.shard_base false."
        )
    hooked = [path for path, block in _blocks_of(model).items() if any(map(is_hooked, block.modules()))]
    packed = [name for name, parameter in _frozen(model).items() if not _is_plain(parameter)]
    found = {"blocks have hooks, as offloaded ones do": hooked, "weights are packed or stored in 8 bits": packed}
    if problems := [f"{len(names)} of its {what} ({first_few(names)})" for what, names in found.items() if names]:
        raise ConfigError(
            f"This {type(model).__name__} cannot be split over processes: {'; '.join(problems)}. "
            "Leave out what stores its base in another way, or leave loop.shard_base false."
        )


def _blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The innermost modules that must stay whole, by path."""
    names = getattr(model, "_no_split_modules", None) or ()
    blocks = {path: module for path, module in model.named_modules() if type(module).__name__ in names}
    return {path: block for path, block in blocks.items() if not any(other.startswith(f"{path}.") for other in blocks)}


def _units_of(model: nn.Module) -> list[list[nn.Module]]:
    """The parts of each block that have frozen weights."""
    units = [[child for child in block.children() if _frozen(child)] for block in _blocks_of(model).values()]
    return [unit for unit in units if unit]


def _frozen(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}


def _is_plain(parameter: nn.Parameter) -> bool:
    is_number = parameter.is_floating_point() and parameter.itemsize > 1
    return type(parameter) in _PLAIN and type(parameter.data) is Tensor and is_number


def _is_split(parameter: Tensor) -> bool:
    return hasattr(parameter, "device_mesh")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if _is_split(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def _hand_down(module: nn.Module) -> None:
    """Let the originals below branches have the parts too; else they would keep the whole weights alive."""
    for stand_in in (below for below in module.modules() if isinstance(below, StandIn)):
        for layer in _layers(stand_in):
            layer.hand_down()


def _layers(stand_in: StandIn) -> Iterator[StandIn]:
    """A stand-in and those that it stands in for."""
    while True:
        yield stand_in
        if not isinstance(stand_in.base, StandIn):
            return
        stand_in = stand_in.base


def _move_whole(model: nn.Module, device: torch.device) -> None:
    """Take everything that is not split to ``device``."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not _is_split(tensor):
            tensor.data = tensor.data.to(device)
