"""How diffusers spells the tensors of an adapter: ``<role>.<module path>.lora_A.weight`` and ``lora_B``."""

import re
from collections.abc import Iterable
from typing import Literal

__all__ = ["LAYOUT", "Side", "pair_up", "parse", "spell"]

LAYOUT = "diffusers"

Side = Literal["A", "B"]

_PART = r"[A-Za-z0-9_\-]+"
_KEY = re.compile(rf"(?P<name>(transformer|unet|text_encoder|text_encoder_2)(\.{_PART})+)\.lora_(?P<side>[AB])\.weight")


def spell(name: str, side: Side) -> str:
    """The tensor name of one side of a pair."""
    return f"{name}.lora_{side}.weight"


def parse(key: str) -> tuple[str, Side] | None:
    """Module name and side of a tensor name; None if it is not one of this layout."""
    match = _KEY.fullmatch(key)
    return (match["name"], "A" if match["side"] == "A" else "B") if match else None


def pair_up(keys: Iterable[str]) -> tuple[dict[str, dict[Side, str]], list[str]]:
    """The keys of every module by side, and the keys that this layout cannot explain."""
    sides: dict[str, dict[Side, str]] = {}
    strangers = []
    for key in keys:
        if parsed := parse(key):
            name, side = parsed
            sides.setdefault(name, {})[side] = key
        else:
            strangers.append(key)
    return sides, strangers
