"""Fills a network with the tensors of a file, without ever running an initialiser or copying what can stay mapped.

diffusers' and transformers' ``from_pretrained`` map files too, but they cast to float32 unless told otherwise, answer
missing and surplus tensors with a warning and random values, and cannot say what a hostile file does wrong.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reelora.errors import ComponentError, first_few
from reelora.tensorio import Tensors, open_tensors

from .folder import Source
from .skeleton import build_skeleton, computed_buffers, fill_computed

__all__ = ["fill_network", "load_network", "match_tensors"]

_KEEP_FLOAT32 = "_keep_in_fp32_modules"


def load_network(source: Source, *, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """Build the network that a source describes around its mapped weights: frozen, in evaluation mode.

    ``dtype`` None keeps every tensor as it is stored. Where it is (or becomes) float16, the layers that the class marks
    as overflowing there (T5's ``wo``) are float32, as in transformers.

    Raises ComponentError that counts and names missing, surplus and misshapen tensors, FileFormatError for a bad file.
    """
    assert source.weights is not None
    return fill_network(build_skeleton(source), open_tensors(source.weights), source, dtype=dtype, device=device)


def fill_network(
    network: nn.Module, store: Tensors, source: Source, *, dtype: torch.dtype | None, device: torch.device, hint: str = ""
) -> nn.Module:
    """Put tensors into a network without memory, as strictly as `load_network`; ``hint`` ends what is said of a misfit."""
    for key, names in match_tensors(network, store, source, dtype=dtype, hint=hint).items():
        stored = store[key]
        wanted = _dtype(network, names[0], stored.dtype, dtype)
        _assign(network, names, stored.to(device=device, dtype=wanted))
    fill_computed(network, device=device)
    return network.eval()


def match_tensors(
    network: nn.Module, store: Tensors, source: Source, *, dtype: torch.dtype | None = None, hint: str = ""
) -> dict[str, list[str]]:
    """The tensors of a file that a network takes, each with the group of the network's names that share it.

    Raises ComponentError unless every tensor of the network is there, and nothing else.
    """
    own = network.state_dict()
    prefix = _old_prefix(own, store)
    stored = {name.removeprefix(prefix): name for name in store}
    groups = _tied_groups(network)
    found = {group[0]: [name for name in group if name in stored] for group in groups}
    problems = _problems(own, found, {name: (store.shapes[key], store.dtypes[key]) for name, key in stored.items()}, dtype)
    computed = computed_buffers(network)
    problems["are surplus"] = [name for name in stored if name not in own and name not in computed]
    if not any(problems.values()):
        problems["differ although the model has one tensor for both"] = _untied(found, stored, store)
    _refuse(problems, source, len(own), hint)
    return {stored[found[group[0]][0]]: group for group in groups}


def _problems(
    own: Mapping[str, Tensor],
    found: Mapping[str, list[str]],
    stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    dtype: torch.dtype | None,
) -> dict[str, list[str]]:
    """Names of the tensors that cannot be filled, by what is wrong with them."""
    present = [name for names in found.values() for name in names]
    shape, kind = {name: stored[name][0] for name in present}, {name: stored[name][1] for name in present}
    floating = [name for name in present if own[name].is_floating_point()]
    return {
        "are missing": [first for first, names in found.items() if not names],
        "have another shape": [
            f"{name} {list(shape[name])} (must be {list(own[name].shape)})"
            for name in present
            if shape[name] != own[name].shape
        ],
        "are stored as integers": [name for name in floating if not kind[name].is_floating_point],
        "are stored in float8, in which nothing runs: pass a dtype": [
            name for name in floating if dtype is None and kind[name].is_floating_point and kind[name].itemsize == 1
        ],
    }


def _refuse(problems: Mapping[str, list[str]], source: Source, count: int, hint: str) -> None:
    if found := [f"{len(names)} tensors {what}, {first_few(names)}" for what, names in problems.items() if names]:
        raise ComponentError(
            f"{source.role}: {source.weights} does not fit the {source.class_name} that {source.description} describes "
            f"({count} tensors): {'; '.join(found)}. {hint or 'Config and weights must be of one model.'}"
        )


def _tied_groups(network: nn.Module) -> list[list[str]]:
    """Names of the state dict, together where they are one tensor: files hold such a tensor under one of them."""
    groups: dict[int, list[str]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def _untied(found: Mapping[str, list[str]], stored: Mapping[str, str], store: Tensors) -> list[str]:
    pairs = [(first, other) for first, *others in found.values() for other in others]
    return [f"{first} and {other}" for first, other in pairs if not torch.equal(store[stored[first]], store[stored[other]])]


def _old_prefix(own: Mapping[str, Tensor], store: Tensors) -> str:
    """A first name part that all stored names have and the network's have not, as CLIP files from before transformers 5."""
    parts = {name.partition(".")[0] for name in store}
    return f"{parts.pop()}." if len(parts) == 1 and not parts & {name.partition(".")[0] for name in own} else ""


def _dtype(network: nn.Module, name: str, stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    if not stored.is_floating_point:
        return stored
    wanted = asked or stored
    overflowing = getattr(type(network), _KEEP_FLOAT32, None) or ()
    return torch.float32 if wanted is torch.float16 and set(name.split(".")) & set(overflowing) else wanted


def _assign(network: nn.Module, names: list[str], tensor: Tensor) -> None:
    """Put one tensor in all the places that share it."""
    owners = [(network.get_submodule(path), leaf) for path, _, leaf in (name.rpartition(".") for name in names)]
    is_parameter = isinstance(getattr(*owners[0]), nn.Parameter)
    value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
    for owner, leaf in owners:
        setattr(owner, leaf, value)
