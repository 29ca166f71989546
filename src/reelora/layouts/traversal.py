"""cloneofsimo's names: the n-th Linear that a walk through the model meets inside certain classes.

The walk is ``model.modules()`` of diffusers 0.10, for which these files were made: down, up and then middle blocks of the UNet,
in a transformer block attn1, feed-forward, attn2; k, v, q, out in CLIP's attention. Source: cloneofsimo/lora,
lora_diffusion/lora.py, ``_find_modules_v2`` and ``save_safeloras_with_embeds``.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .place import Place, Slot

__all__ = ["Traversal", "TraversalList"]

_SPATIAL = tuple(
    f"{place}.attentions.{index}.transformer_blocks.0"
    for place, count in (
        *((f"down_blocks.{stage}", 2) for stage in range(3)),
        *((f"up_blocks.{stage}", 3) for stage in range(1, 4)),
        ("mid_block", 1),
    )
    for index in range(count)
)
"""The transformer blocks of the SD 1.x and 2.x UNet in the order of the walk."""

_UNET_LEAVES: tuple[tuple[str, str], ...] = (
    *(("CrossAttention", f"attn1.{leaf}") for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
    ("GEGLU", "ff.net.0.proj"),
    *(("CrossAttention", f"attn2.{leaf}") for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
)
_CLIP_LEAVES: tuple[tuple[str, str], ...] = tuple(
    ("CLIPAttention", f"self_attn.{leaf}") for leaf in ("k_proj", "v_proj", "q_proj", "out_proj")
)

_CLASSES: Mapping[str, Mapping[str, str]] = {
    "unet": {"CrossAttention": "CrossAttention", "Attention": "CrossAttention", "GEGLU": "GEGLU"},
    "text_encoder": {"CLIPAttention": "CLIPAttention"},
}
"""Classes that a file may list for a role, and the class of the walk that each means."""

_CLIP_LAYERS = 32
"""More than any CLIP text encoder of Stable Diffusion has (12 or 23)."""

_INDEXED = re.compile(r"(?P<role>unet|text_encoder):(?P<index>0|[1-9]\d*):(?P<side>up|down)")
_TOKEN = re.compile(r"<[^<>]+>")
_LIKE = re.compile(r"(unet|text_encoder):\d+:")
_SIDES: Mapping[str, Slot] = {"up": "B", "down": "A"}


def _walk(role: str, classes: Iterable[str]) -> list[str] | None:
    """The modules that the walk meets; None if it would also meet classes that are not in the table."""
    table = _CLASSES[role]
    if not all(name in table for name in classes):
        return None
    met = {table[name] for name in classes}
    blocks = _SPATIAL if role == "unet" else tuple(f"text_model.encoder.layers.{index}" for index in range(_CLIP_LAYERS))
    leaves = _UNET_LEAVES if role == "unet" else _CLIP_LEAVES
    return [f"{role}.{block}.{leaf}" for block in blocks for kind, leaf in leaves if kind in met]


@dataclass(frozen=True)
class Traversal:
    """``unet:0:up``, with the classes of each role as a JSON list in the header, and token embeddings as ``<token>``."""

    walks: Mapping[str, list[str]] = field(default_factory=dict)

    def of_file(self, keys: Iterable[str], metadata: Mapping[str, str]) -> "Traversal":
        walks = {role: _walk(role, names) for role in _CLASSES if (names := _class_list(metadata.get(role))) is not None}
        return Traversal({role: walk for role, walk in walks.items() if walk is not None})

    def parse(self, key: str) -> Place | None:
        if _TOKEN.fullmatch(key) and key.isprintable():
            return Place(key, "token")
        match = _INDEXED.fullmatch(key)
        walk = self.walks.get(match["role"], []) if match else []
        if match is None or int(match["index"]) >= len(walk):
            return None
        return Place(walk[int(match["index"])], _SIDES[match["side"]])

    def likeness(self, key: str) -> int:
        match = _LIKE.match(key)
        return match.end() if match else 0

    def spell(self, module: str, slot: Slot) -> str | None:
        return None


@dataclass(frozen=True)
class TraversalList:
    """The ``.pt`` form: a bare list of up, down, up, down ... in the order of the walk, whose length tells the classes."""

    walk: tuple[str, ...] = ()

    def of_file(self, keys: Iterable[str], metadata: Mapping[str, str]) -> "TraversalList":
        keys = list(keys)
        walks = (
            _walk("unet", ("CrossAttention", "GEGLU")),
            _walk("unet", ("CrossAttention",)),
            (_walk("text_encoder", ("CLIPAttention",)) or [])[: 4 * 12],
        )
        is_list = set(keys) == {str(index) for index in range(len(keys))}
        return TraversalList(tuple(next((walk for walk in walks if is_list and walk and 2 * len(walk) == len(keys)), ())))

    def parse(self, key: str) -> Place | None:
        index, side = divmod(int(key), 2) if re.fullmatch(r"\d{1,4}", key) else (-1, 0)
        return Place(self.walk[index], "A" if side else "B") if 0 <= index < len(self.walk) else None

    def likeness(self, key: str) -> int:
        return 0

    def spell(self, module: str, slot: Slot) -> str | None:
        return None


def _class_list(text: str | None) -> list[str] | None:
    try:
        names = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
