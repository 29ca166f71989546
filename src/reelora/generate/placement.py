"""Puts the parts of a model where a plan says, and back; by diffusers' and accelerate's own hooks."""

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reelora.components import repeated_blocks, repeated_classes
from reelora.errors import ConfigError
from reelora.lora import use_attention
from reelora.plan import Placement, Plan

__all__ = ["place", "unplace"]

_ORDER = ("text_encoder", "text_encoder_2", "transformer", "unet", "vae")
"""Roles in the order in which a job needs them."""
_DENOISERS = ("transformer", "unet")
_HOST = torch.device("cpu")


@dataclass(frozen=True)
class _Placed:
    plan: Plan
    device: torch.device
    undo: ExitStack


_PLACED: "weakref.WeakKeyDictionary[nn.Module, _Placed]" = weakref.WeakKeyDictionary()
"""What was done to each network; it is forgotten with the network."""


def place(pipeline: Any, plan: Plan, device: torch.device) -> None:
    """Put the networks of a diffusers pipeline (or of a `Bundle`) where ``plan`` says, for computing on ``device``.

    Networks that are there by the same plan are left alone; those of another plan are brought back first. On a CPU
    ``resident`` and ``model`` leave weights where they are, as pages of their file: who loads the parts has them come and go.
    On failure nothing has changed.

    Raises ConfigError for a placement or an attention backend that the device or the machine does not have.
    """
    _check(plan, device)
    networks = _networks_of(pipeline)
    if all(name in _PLACED and _is_so(_PLACED[name], plan, device) for name in networks.values()):
        return
    unplace(pipeline)
    with ExitStack() as done:
        stacks = {role: done.enter_context(ExitStack()) for role in networks}
        for role, network in networks.items():
            _set_up(role, network, plan, device, stacks[role])
        _PLACE[plan.placement](networks, plan, device, stacks)
        for role, network in networks.items():
            _PLACED[network] = _Placed(plan, device, stacks[role].pop_all())


def unplace(pipeline: Any) -> None:
    """Take everything off again that `place` did: hooks, casts, compiled code, settings; weights are as before, bit for bit."""
    for network in _networks_of(pipeline).values():
        if placed := _PLACED.pop(network, None):
            placed.undo.close()


def _check(plan: Plan, device: torch.device) -> None:
    if plan.placement == "sequential" and device.type == "cpu":
        raise ConfigError(
            "Sequential offload brings layers to an accelerator, and this is a CPU: the plan model does the same."
        )
    if plan.use_streams and device.type != "cuda":
        raise ConfigError(f"Streams are CUDA's, and this is {device}: leave streams out of the plan.")


def _is_so(placed: _Placed, plan: Plan, device: torch.device) -> bool:
    return placed.plan == plan and placed.device == device


def _networks_of(pipeline: Any) -> dict[str, nn.Module]:
    """By role, in the order in which they run; what is no network, or not here, is left out."""
    if (components := getattr(pipeline, "components", None)) is None:
        components = {role: getattr(pipeline, role) for role in pipeline.roles}
    return {role: components[role] for role in _ORDER if isinstance(components.get(role), nn.Module)}


# ---- what is done to a network wherever it is; each leaves its inverse on the stack


def _set_up(role: str, network: Any, plan: Plan, device: torch.device, undo: ExitStack) -> None:
    if role == "vae":
        _switch(network, "tiling", plan.tiles, undo)
        _switch(network, "slicing", plan.slices, undo)
    if role in _DENOISERS:
        if plan.attention != "auto":
            undo.callback(use_attention(network, plan.attention))
        if plan.fp8:
            _cast(network, undo)
        if plan.compile:
            _compile(network, undo)


def _switch(vae: Any, what: str, is_wanted: bool, undo: ExitStack) -> None:
    """Tiling or slicing on or off; the sizes of tiles stay."""
    held = f"use_{what}"
    if getattr(vae, held, None) in (None, is_wanted):
        return
    undo.callback(setattr, vae, held, not is_wanted)
    setattr(vae, held, is_wanted)


def _cast(network: Any, undo: ExitStack) -> None:
    """Store the large layers in 8 bits. The weights themselves are kept aside on the host, mapped if they were."""
    kept = [(tensor, tensor.data) for tensor in network.parameters()]

    def bring_back() -> None:
        _unhook(network)
        for tensor, data in kept:
            tensor.data = data

    undo.callback(bring_back)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)


def _compile(network: Any, undo: ExitStack) -> None:
    names = repeated_classes(network)
    if not names:
        raise ConfigError(f"Nobody says which blocks of a {type(network).__name__} repeat: leave compile out of the plan.")
    if not network._repeated_blocks:
        network._repeated_blocks = names  # on this object alone; the class stays as it is
        undo.callback(vars(network).pop, "_repeated_blocks", None)
    blocks = repeated_blocks(network)
    before = [block._compiled_call_impl for block in blocks]

    def bring_back() -> None:
        for block, held in zip(blocks, before, strict=True):
            block._compiled_call_impl = held

    undo.callback(bring_back)
    network.compile_repeated_blocks()


# ---- where networks are

Networks = Mapping[str, nn.Module]
Stacks = Mapping[str, ExitStack]


def _all_there(networks: Networks, plan: Plan, device: torch.device, stacks: Stacks) -> None:
    for role, network in networks.items():
        before = next(network.parameters()).device
        if before != device:
            stacks[role].callback(network.to, before)
            network.to(device)


def _in_turn(networks: Networks, plan: Plan, device: torch.device, stacks: Stacks) -> None:
    """Each comes when it is called, and sends the one before it away."""
    if device.type == "cpu":
        return
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    hook = None
    for role, network in networks.items():
        stacks[role].callback(network.to, next(network.parameters()).device)
        stacks[role].callback(_tidy, network, remove_hook_from_module)
        _, hook = cpu_offload_with_hook(network, device, prev_module_hook=hook)


def _by_groups(networks: Networks, plan: Plan, device: torch.device, stacks: Stacks) -> None:
    """The denoiser block by block; the others, whose blocks nest, layer by layer."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    for role, network in networks.items():
        stacks[role].callback(network.to, next(network.parameters()).device)
        stacks[role].callback(_unhook, network, only=_GROUPS)
        how: dict[str, Any] = {"offload_type": "leaf_level"}
        if role in _DENOISERS:
            how = {"offload_type": "block_level", "num_blocks_per_group": 1}
        told = {"onload_device": device, "offload_device": _HOST, "use_stream": plan.use_streams}
        apply_group_offloading(network, **told, **how)


def _layer_by_layer(networks: Networks, plan: Plan, device: torch.device, stacks: Stacks) -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    for role, network in networks.items():
        stacks[role].callback(network.to, next(network.parameters()).device)
        stacks[role].callback(_tidy, network, lambda module: remove_hook_from_module(module, recurse=True))
        cpu_offload(network, device, offload_buffers=len(list(network.buffers())) > 0)


_PLACE: Mapping[Placement, Callable[[Networks, Plan, torch.device, Stacks], None]] = {
    "resident": _all_there,
    "model": _in_turn,
    "group": _by_groups,
    "sequential": _layer_by_layer,
}

# ---- taking hooks off

_REGISTRY = "_diffusers_hook"
_GROUPS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
"""Hooks that diffusers hangs up for group offloading. Source: diffusers 0.42.1, hooks/group_offloading.py."""
_CASTS = ("layerwise_casting", "peft_autocast_disable")
"""The same for layerwise casting. Source: hooks/layerwise_casting.py."""


def _unhook(network: nn.Module, *, only: tuple[str, ...] = _CASTS) -> None:
    """Take hooks off by name. Casting cannot be taken off by diffusers, since it has lost the weights; here they were kept."""
    for module in network.modules():
        registry: Any = vars(module).get(_REGISTRY)
        if registry is None:
            continue
        for name in [name for name in registry.hooks if name in only]:
            registry.hooks[name].deinitalize_hook = _as_it_is
            registry.remove_hook(name, recurse=False)
        if not registry.hooks:
            del vars(module)[_REGISTRY]
        _drop_own_forward(module)


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _tidy(network: nn.Module, remove: Callable[[nn.Module], Any]) -> None:
    remove(network)
    for module in network.modules():
        _drop_own_forward(module)


def _drop_own_forward(module: nn.Module) -> None:
    """A forward that hooks have left on the module itself, where it is no other than that of its class."""
    forward = vars(module).get("forward")
    if getattr(forward, "__func__", None) is type(module).forward:
        del vars(module)["forward"]
