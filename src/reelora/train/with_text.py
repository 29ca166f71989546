"""A denoiser and the text encoders that it listens to, trained as one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from reelora.adapters import Adapter, LoraSpec, split_role
from reelora.data import CachedClip
from reelora.errors import MismatchError
from reelora.lora import collect, role_of

from .begin import begin_from
from .conditioning import Look

__all__ = ["OF_TEXT_ENCODERS", "TokenCondition", "WithText", "begin_all_from", "collect_all"]


OF_TEXT_ENCODERS = "text_encoders."
"""How the names of their parameters begin in a WithText."""


class WithText(nn.Module):
    """A denoiser with its text encoder, or with both in the order of their roles, to be the model of a lesson.

    Attach to each of them before. The stored prompt states are then not used: they are made anew from the tokens at every look,
    so that gradients reach the encoders. Takes a TokenCondition besides those of the denoiser; pooled states are made anew too.
    """

    def __init__(self, denoiser: nn.Module, *text_encoders: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.text_encoders = denoiser, nn.ModuleList(text_encoders)

    @property
    def config(self) -> Any:
        """The denoiser's."""
        return self.denoiser.config

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Denoiser and text encoders by role."""
        return {role_of(part): part for part in (self.denoiser, *self.text_encoders)}

    def enable_gradient_checkpointing(self, function: Callable[..., Any]) -> None:
        """Run the blocks of the denoiser by a function; the activations of the encoders are few."""
        self.denoiser.enable_gradient_checkpointing(function)  # pyright: ignore[reportCallIssue]

    def disable_gradient_checkpointing(self) -> None:
        """Run the blocks as they are again."""
        self.denoiser.disable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True, kw_only=True)
class TokenCondition:
    """The tokens of captions for each text encoder that is trained; -1 throughout stands for states of zeros."""

    tokens: Mapping[str, Int[Tensor, "e s"]]
    """By caption, "" among them."""
    name: str = field(default="tokens", init=False)

    def __call__(self, clip: CachedClip, look: Look, /) -> Int[Tensor, "e s"]:
        return self.tokens[look.caption]


def begin_all_from(model: WithText, adapter: Adapter, specs: Mapping[str, LoraSpec]) -> None:
    """``begin_from`` for every part, each with the spec of its role. Raises what that raises, MismatchError for other roles."""
    pairs = {
        role: {name: pair for name, pair in adapter.pairs.items() if split_role(name)[0] == role} for role in adapter.roles
    }
    if pairs.keys() != model.parts.keys():
        raise MismatchError(
            f"This adapter is of {', '.join(adapter.roles)}, and what is trained is {', '.join(model.parts)}: train the same."
        )
    for role, part in model.parts.items():
        begin_from(part, replace(adapter, pairs=pairs[role]), specs[role])


def collect_all(model: WithText, *, provenance: Mapping[str, str] | None = None) -> Adapter:
    """The branches of denoiser and text encoders as one adapter of several roles."""
    parts = [collect(part) for part in model.parts.values()]
    pairs = {name: pair for part in parts for name, pair in part.pairs.items()}
    scales = {name: pair.scale for name, pair in pairs.items() if pair.scale is not None}
    return Adapter(
        pairs=pairs,
        spec=LoraSpec.describing({name: pair.rank for name, pair in pairs.items()}, scales),
        layout="memory",
        scale_source="; ".join(dict.fromkeys(part.scale_source for part in parts)),
        provenance=provenance or {},
    )
