"""Another attention for a denoiser of CogVideoX, whose stock processor always calls torch's own."""

from collections.abc import Callable
from typing import Any

from reelora.errors import ConfigError, nearest

from .processors import is_stock_cogvideox

__all__ = ["use_attention"]


def use_attention(model: Any, backend: str) -> Callable[[], None]:
    """Let every attention of a diffusers model run on a backend, by diffusers' name for it; returns what undoes it.

    Raises ConfigError, before anything is changed, for a backend that diffusers does not know (with the nearest name) or that
    this machine cannot run.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements

    from .attention import StackedAttention

    known = [name.value for name in AttentionBackendName]
    if backend not in known:
        raise ConfigError(f"There is no attention backend {backend!r}: {nearest(backend, known)}")
    name = AttentionBackendName(backend)
    try:
        _check_attention_backend_requirements(name)
    except (RuntimeError, ImportError, ValueError) as error:
        raise ConfigError(f"The attention backend {backend!r} cannot run here: {error}") from error
    before: list[tuple[Any, str, object]] = []
    for module in model.modules():
        processor: Any = getattr(module, "processor", None)
        if is_stock_cogvideox(module):
            before.append((module, "processor", processor))
            module.processor = processor = StackedAttention()
        if hasattr(processor, "_attention_backend"):
            before.append((processor, "_attention_backend", processor._attention_backend))
            processor._attention_backend = name

    def undo() -> None:
        for held, what, value in reversed(before):
            setattr(held, what, value)

    return undo
