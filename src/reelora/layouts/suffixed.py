"""Names made of a prefix, a module path and an ending: nearly all dialects."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .paths import flatten, unflatten
from .place import DENOISER, Place, Slot

__all__ = ["REFUSED", "Dotted", "Flat", "Suffixed"]

_PATH = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_PREFIXED = re.compile(r"(base_model\.model|(model\.)?diffusion_model|transformer|unet|text_encoder(_\d)?)\.|(lora|lycoris)_")
_NAMED = re.compile(r"(?P<head>.+\.(?:lora_[AB]|lora_magnitude_vector))\.(?P<name>[^.]+)(?P<tail>\.weight)?")

REFUSED: Mapping[str, str] = {
    "diff": "a full difference of weights (LyCORIS full, ComfyUI)",
    "diff_b": "a difference of a bias",
    "set_weight": "a weight that replaces the base's",
    "reshape_weight": "a change of a layer's shape",
    "w_norm": "a norm's weight",
    "b_norm": "a norm's bias",
    "lora_B.bias": "a bias beside B (PEFT lora_bias)",
    "lora_up.bias": "a bias beside B",
    "lora_embedding_A": "a LoRA of an embedding",
    "lora_embedding_B": "a LoRA of an embedding",
    "a1.weight": "GLoRA",
    "a2.weight": "GLoRA",
    "b1.weight": "GLoRA",
    "b2.weight": "GLoRA",
    "oft_blocks": "OFT, a rotation of the base",
    "oft_diag": "OFT, a rotation of the base",
    "rescale": "OFT, a rotation of the base",
    "on_input": "IA3",
    "bias_indices": "a sparse bias (LyCORIS)",
    "bias_values": "a sparse bias (LyCORIS)",
    "bias_size": "a sparse bias (LyCORIS)",
}
"""Endings of updates that are no ``scale * B @ A``, and what they are."""


@dataclass(frozen=True)
class Dotted:
    """Module paths with their dots, behind a prefix that says the role."""

    roles: Mapping[str, str]
    """Prefix and role; the longest prefix that fits counts."""
    rewrites: tuple[tuple[str, str], ...] = ()
    """(regex, ours) of the path: where there are any, exactly one has to fit."""

    def ours(self, spelled: str) -> str | None:
        prefix = next((prefix for prefix in sorted(self.roles, key=len, reverse=True) if spelled.startswith(prefix)), None)
        if prefix is None or (not prefix and _PREFIXED.match(spelled)):
            return None
        path = self._rewritten(spelled.removeprefix(prefix))
        return f"{self.roles[prefix]}.{path}" if path and _PATH.fullmatch(path) else None

    def theirs(self, role: str, path: str) -> str | None:
        prefix = _prefix_of(role, self.roles)
        return None if prefix is None or self.rewrites else f"{prefix}{path}"

    def _rewritten(self, path: str) -> str | None:
        if not self.rewrites:
            return path
        return next((new for pattern, ours in self.rewrites if (new := re.sub(pattern, ours, path)) != path), None)


@dataclass(frozen=True)
class Flat:
    """Module paths with "_" for ".", behind a prefix that says the role."""

    roles: Mapping[str, str]

    def ours(self, spelled: str) -> str | None:
        prefix = next((prefix for prefix in sorted(self.roles, key=len, reverse=True) if spelled.startswith(prefix)), None)
        path = None if prefix is None else unflatten(spelled.removeprefix(prefix))
        return None if prefix is None or path is None else f"{self.roles[prefix]}.{path}"

    def theirs(self, role: str, path: str) -> str | None:
        prefix, flat = _prefix_of(role, self.roles), flatten(path)
        return None if prefix is None or flat is None else f"{prefix}{flat}"


def _prefix_of(role: str, roles: Mapping[str, str]) -> str | None:
    """The first prefix of a role; a prefix of the denoiser serves transformer and unet."""
    wanted = (role, DENOISER) if role in ("transformer", "unet") else (role,)
    return next((prefix for prefix, its in roles.items() if its in wanted), None)


@dataclass(frozen=True)
class Suffixed:
    """``<prefix><module>.<ending>``, with the name of an adapter slot inside the ending if ``is_named``."""

    names: Dotted | Flat
    slots: Mapping[str, Slot] = field(default_factory=dict)
    """Ending and slot; the first ending of a slot is the one that is written."""
    is_named: bool = False

    def of_file(self, keys: Iterable[str], metadata: Mapping[str, str]) -> "Suffixed":
        return self

    def parse(self, key: str) -> Place | None:
        key, name = _unnamed(key)
        match = self._pattern.fullmatch(key)
        if match is None or bool(name) != self.is_named:
            return None
        module = self.names.ours(match["module"])
        slot = self.slots.get(match["ending"], "refused")
        return None if module is None else Place(module, slot, name)

    def spell(self, module: str, slot: Slot) -> str | None:
        role, _, path = module.partition(".")
        spelled = self.names.theirs(role, path)
        ending = next((ending for ending, its in self.slots.items() if its == slot), None)
        return None if spelled is None or ending is None or self.is_named else f"{spelled}.{ending}"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        endings = sorted({*self.slots, *REFUSED}, key=len, reverse=True)
        return re.compile(rf"(?P<module>.+?)\.(?P<ending>{'|'.join(map(re.escape, endings))})")


def _unnamed(key: str) -> tuple[str, str]:
    """A PEFT key without the name of its adapter slot, and that name: ``lora_A.default.weight``."""
    match = _NAMED.fullmatch(key)
    if match is None or match["name"] in ("weight", "bias"):
        return key, ""
    return match["head"] + (match["tail"] or ""), match["name"]
