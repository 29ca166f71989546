"""A denoiser and the text encoder that it listens to, trained as one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from reelora.adapters import Adapter, LoraSpec
from reelora.data import CachedClip
from reelora.lora import collect

from .conditioning import Look

__all__ = ["TokenCondition", "WithText", "collect_both"]


class WithText(nn.Module):
    """A denoiser with its text encoder, to be the model of a lesson; attach to both before.

    The stored prompt states are then not used: they are made anew from the tokens at every look, so that gradients reach the
    encoder. Takes a TokenCondition besides those of the denoiser.
    """

    def __init__(self, denoiser: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder

    @property
    def config(self) -> Any:
        """The denoiser's."""
        return self.denoiser.config

    def enable_gradient_checkpointing(self) -> None:
        """Compute the activations of the denoiser again in the backward pass; the encoder's are few."""
        self.denoiser.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True, kw_only=True)
class TokenCondition:
    """The tokens of captions, for a text encoder that is trained."""

    tokens: Mapping[str, Int[Tensor, " s"]]
    """By caption, "" among them."""
    name: str = field(default="tokens", init=False)

    def __call__(self, clip: CachedClip, look: Look, /) -> Int[Tensor, " s"]:
        return self.tokens[look.caption]


def collect_both(model: WithText, *, provenance: Mapping[str, str] | None = None) -> Adapter:
    """The branches of denoiser and text encoder as one adapter of two roles."""
    parts = [collect(part) for part in (model.denoiser, model.text_encoder)]
    pairs = {name: pair for part in parts for name, pair in part.pairs.items()}
    scales = {name: pair.scale for name, pair in pairs.items() if pair.scale is not None}
    return Adapter(
        pairs=pairs,
        spec=LoraSpec.describing({name: pair.rank for name, pair in pairs.items()}, scales),
        layout="memory",
        scale_source="; ".join(dict.fromkeys(part.scale_source for part in parts)),
        provenance=provenance or {},
    )
