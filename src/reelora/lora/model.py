"""Looking at a model and swapping its modules, all or none."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from reelora.adapters import ROLES, LoraSpec
from reelora.errors import ConfigError, MismatchError, first_few, nearest

__all__ = ["linears_of", "models_of", "role_of", "swap", "target_linears"]

_ROLE_OF_CLASS = {
    r".*Transformer\w*Model": "transformer",
    r"UNet\w*Model": "unet",
    r"CLIPTextModelWithProjection": "text_encoder_2",
    r"(CLIPTextModel|T5EncoderModel)": "text_encoder",
}
"""Class names (regular expressions) and the role of such a model in a diffusers pipeline."""


def role_of(model: nn.Module) -> str:
    """The role of a model in its pipeline, by its class; ConfigError if it can take no adapter."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"A model is needed here, for example pipe.transformer, not {type(model).__name__}.")
    classes = [cls.__name__ for cls in type(model).__mro__]
    for name in classes:
        for pattern, role in _ROLE_OF_CLASS.items():
            if re.fullmatch(pattern, name):
                return role
    raise ConfigError(
        f"{classes[0]} is no transformer, UNet or text encoder that an adapter can be put on. "
        "If it is a wrapper (compile, DDP), give the model inside it."
    )


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Every Linear below a model, by path."""
    return {path: module for path, module in model.named_modules() if path and isinstance(module, nn.Linear)}


def target_linears(model: nn.Module, spec: LoraSpec) -> dict[str, nn.Linear]:
    """The Linears that a spec means, by path; MismatchError that lists every target without one."""
    found = {path: module for path, module in model.named_modules() if path and spec.targets(path)}
    linears = {path: module for path, module in found.items() if isinstance(module, nn.Linear)}
    wrong = [f"{path} ({type(module).__name__})" for path, module in found.items() if path not in linears]
    problems = [f"{len(wrong)} targets are no Linear: {first_few(wrong)}"] if wrong else []
    problems += [f"no module is called {target!r}: {_hint(target, model)}" for target in _unmatched(spec, found)]
    if problems:
        raise MismatchError(f"These targets do not fit {type(model).__name__}:\n" + "\n".join(f"- {p}" for p in problems))
    return linears


def swap(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put modules in the places named by path; if any place refuses, or Ctrl-C comes, everything is put back."""
    done: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, module in modules.items():
            parent_path, _, leaf = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            done.append((parent, leaf, parent.get_submodule(leaf)))
            setattr(parent, leaf, module)
    except BaseException:
        for parent, leaf, original in reversed(done):
            parent._modules[leaf] = original  # what refused one assignment may refuse another
        raise


def _unmatched(spec: LoraSpec, found: Mapping[str, nn.Module]) -> list[str]:
    """The targets (or the expression) that fit none of the modules found."""
    if isinstance(spec.target_modules, str):
        return [] if found else [spec.target_modules]
    return [
        target for target in spec.target_modules if not any(path == target or path.endswith(f".{target}") for path in found)
    ]


def _hint(target: str, model: nn.Module) -> str:
    """The nearest spelling among the last components of all Linears: ``to_q``, ``attn1.to_q`` ..."""
    tails = [path.split(".")[-length:] for path in linears_of(model) for length in (1, 2, 3)]
    return nearest(target, {".".join(tail) for tail in tails if not tail[0].isdigit()})


def models_of(model: nn.Module | Any) -> dict[str, nn.Module]:
    """By role: the model itself, or the parts of a pipeline (or bundle) that can take an adapter; without compiled wrappers."""
    if isinstance(model, nn.Module):
        bare = _bare(model)
        return {role_of(bare): bare}
    held = getattr(model, "roles", ROLES)  # a bundle says which parts it has, and raises for others
    parts = {role: getattr(model, role, None) for role in ROLES if role in held}
    if found := {role: _bare(part) for role, part in parts.items() if isinstance(part, nn.Module)}:
        return found
    raise ConfigError(f"A Rack needs a pipeline or a model, for example pipe or pipe.transformer, not {type(model).__name__}.")


def _bare(model: nn.Module) -> nn.Module:
    return getattr(model, "_orig_mod", model)
