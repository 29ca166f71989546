"""Reelora: LoRA adapters for video diffusion, from the first clip to the finished video."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reelora.adapters import Adapter, LoraSpec, Pair, diff, extract, merge, read_adapter, resize, write_adapter
    from reelora.components import Bundle, load_components
    from reelora.errors import ReeloraError, UnknownScaleError
    from reelora.generate import Clip, Session
    from reelora.lora import Rack, attach, collect, detach, load_into, using

__version__ = "0.1.0"

_HOMES = {
    "adapters": ("Adapter", "LoraSpec", "Pair", "diff", "extract", "merge", "read_adapter", "resize", "write_adapter"),
    "components": ("Bundle", "load_components"),
    "errors": ("ReeloraError", "UnknownScaleError"),
    "generate": ("Clip", "Session"),
    "lora": ("Rack", "attach", "collect", "detach", "load_into", "using"),
}
"""The room of every public name; it is imported when the name is first used, so that ``reelora --help`` needs none."""

__all__ = [
    "Adapter",
    "Bundle",
    "Clip",
    "LoraSpec",
    "Pair",
    "Rack",
    "ReeloraError",
    "Session",
    "UnknownScaleError",
    "attach",
    "collect",
    "detach",
    "diff",
    "extract",
    "load_components",
    "load_into",
    "merge",
    "read_adapter",
    "resize",
    "using",
    "write_adapter",
]


def __getattr__(name: str) -> Any:
    for room, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"reelora.{room}"), name)
    raise AttributeError(f"module 'reelora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
