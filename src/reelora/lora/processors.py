"""Attention processors while branches hang in a model, and a guard against projections that are fused meanwhile."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from reelora.errors import MismatchError, first_few

from .sites import SHARED_INPUT, Site

__all__ = ["Processors", "attentions_of", "bypasses", "check_projections", "is_stock_cogvideox"]


class Processors:
    """Gives attentions with branches a processor that shares products with A, and gives them back their own afterwards.

    While any branch hangs, a forward of its model first makes sure that none is bypassed: diffusers' ``fuse_qkv_projections``
    copies the weights of query, key and value into one new Linear and leaves branches on them out.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self._served: dict[Any, object] = {}
        """The processors that attentions had before, by attention."""
        self._ours: dict[Any, object] = {}
        """Ours, each of which keeps the attention backend that was set on it while it served."""
        self._watched: tuple[Site, ...] = ()
        self._guards: list[RemovableHandle] = []

    def serve(self, sites: Iterable[Site]) -> None:
        """Serve exactly the attentions that have a branch among these sites."""
        self._watched = tuple(site for site in sites if site.leaf in SHARED_INPUT)
        attentions = attentions_of(self._watched)
        for attention in [held for held in self._served if held not in attentions]:
            self._dismiss(attention)
        for attention in attentions:
            if attention not in self._served and is_stock_cogvideox(attention):
                self._give(attention)
        self._stand_guard()

    def _give(self, attention: Any) -> None:
        from .attention import StackedAttention  # diffusers is there, or the model would not be

        self._served[attention] = attention.processor
        attention.processor = self._ours.setdefault(attention, StackedAttention())

    def _dismiss(self, attention: Any) -> None:
        before = self._served.pop(attention)
        if type(attention.processor).__name__ == "StackedAttention":
            attention.processor = before

    def _stand_guard(self) -> None:
        """Watch every model's forwards while there is something to watch, and not a moment longer."""
        if self._watched and not self._guards:
            self._guards = [model.register_forward_pre_hook(self._check) for model in self._models.values()]
        elif not self._watched:
            for guard in self._guards:
                guard.remove()
            self._guards = []

    def _check(self, model: nn.Module, inputs: object) -> None:
        check_projections(self._watched)


def check_projections(sites: Iterable[Site]) -> None:
    """Raise MismatchError if one of the sites is bypassed because projections of its attention were fused into one Linear."""
    if fused := sorted(site.name for site in sites if site.leaf in SHARED_INPUT and bypasses(site.parent)):
        raise MismatchError(
            f"{len(fused)} modules were copied away by fuse_qkv_projections and do nothing now ({first_few(fused)}): "
            "call model.unfuse_qkv_projections() first, and fuse the adapter instead; that costs nothing per step either."
        )


def attentions_of(sites: Iterable[Site]) -> set[nn.Module]:
    """The attentions whose query, key or value are among the sites."""
    return {site.parent for site in sites if site.leaf in SHARED_INPUT}


def bypasses(attention: nn.Module) -> bool:
    """Whether it works on a fused copy; its flag ``fused_projections`` stays set when diffusers has unfused it."""
    return type(getattr(attention, "processor", None)).__name__.startswith("Fused")


def is_stock_cogvideox(attention: nn.Module) -> bool:
    """Whether it runs on diffusers' own processor of CogVideoX."""
    return type(getattr(attention, "processor", None)).__name__ == "CogVideoXAttnProcessor2_0"
