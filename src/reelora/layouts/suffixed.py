"""Names made of a prefix, a module path and an ending: nearly all dialects."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .paths import flatten, from_original, unflatten
from .place import DENOISER, Place, Slot

__all__ = ["REFUSED", "Dotted", "Flat", "Suffixed"]

_PATH = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_PREFIXED = re.compile(r"(base_model\.model|(model\.)?diffusion_model|transformer|unet|text_encoder(_\d)?)\.|(lora|lycoris)_")
_NAMED = frozenset({"lora_A", "lora_B", "lora_magnitude_vector"})
"""Parts of a name behind which PEFT puts the name of the adapter slot."""
_NAME = re.compile(r"(?!(weight|bias)$)[\w\-]+")
_LONGEST_ENDING = 3
"""Parts that an ending has at most."""

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
class _Prefixed:
    """Module paths behind a prefix that says the role."""

    roles: Mapping[str, str]
    """Prefix and role; the longest prefix that fits counts."""

    def prefix_of(self, spelled: str) -> str | None:
        return next((prefix for prefix in self._longest_first if spelled.startswith(prefix)), None)

    def prefix_for(self, role: str) -> str | None:
        """The first prefix of a role; a prefix of the denoiser serves transformer and unet."""
        wanted = (role, DENOISER) if role in ("transformer", "unet") else (role,)
        return next((prefix for prefix, its in self.roles.items() if its in wanted), None)

    @cached_property
    def _longest_first(self) -> list[str]:
        return sorted(self.roles, key=len, reverse=True)


@dataclass(frozen=True)
class Dotted(_Prefixed):
    """Module paths with their dots."""

    rewrites: tuple[tuple[str, str], ...] = ()
    """(regex, ours) of the path: where there are any, exactly one has to fit."""
    has_original: bool = False
    """Whether a UNet has the paths of the original SD code, which are read and never written."""

    def ours(self, spelled: str) -> str | None:
        prefix = self.prefix_of(spelled)
        if prefix is None or (not prefix and _PREFIXED.match(spelled)):
            return None
        path = self._rewritten(spelled.removeprefix(prefix))
        return f"{self.roles[prefix]}.{path}" if path and _PATH.fullmatch(path) else None

    def theirs(self, role: str, path: str) -> str | None:
        prefix = self.prefix_for(role)
        is_foreign = self.rewrites or (self.has_original and role == "unet")
        return None if prefix is None or is_foreign else f"{prefix}{path}"

    def _rewritten(self, path: str) -> str | None:
        if self.has_original:
            return from_original(path)
        if not self.rewrites:
            return path
        return next((new for pattern, ours in self.rewrites if (new := re.sub(pattern, ours, path)) != path), None)


@dataclass(frozen=True)
class Flat(_Prefixed):
    """Module paths with "_" for "."."""

    def ours(self, spelled: str) -> str | None:
        prefix = self.prefix_of(spelled)
        path = None if prefix is None else unflatten(spelled.removeprefix(prefix))
        return None if prefix is None or path is None else f"{self.roles[prefix]}.{path}"

    def theirs(self, role: str, path: str) -> str | None:
        prefix, flat = self.prefix_for(role), flatten(path)
        return None if prefix is None or flat is None else f"{prefix}{flat}"


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
        spelled, slot, name = self._split(key)
        module = None if slot is None else self.names.ours(spelled)
        return None if slot is None or module is None else Place(module, slot, name)

    def likeness(self, key: str) -> int:
        spelled, _, _ = self._split(key)
        prefix = self.names.prefix_of(key)
        return 0 if prefix is None else len(prefix) + len(key) - len(spelled)

    def spell(self, module: str, slot: Slot) -> str | None:
        role, _, path = module.partition(".")
        spelled = self.names.theirs(role, path)
        ending = next((ending for ending, its in self.slots.items() if its == slot), None)
        return None if spelled is None or ending is None or self.is_named else f"{spelled}.{ending}"

    def _split(self, key: str) -> tuple[str, Slot | None, str]:
        """The module of a name, the slot that its longest known ending stands for, and the adapter slot named in there."""
        parts, name = _unnamed(key.rsplit(".", _LONGEST_ENDING))
        for first in range(1, len(parts) if bool(name) == self.is_named else 0):
            if slot := self._endings.get(".".join(parts[first:])):
                return ".".join(parts[:first]), slot, name
        return key, None, ""

    @cached_property
    def _endings(self) -> Mapping[str, Slot]:
        return {**dict.fromkeys(REFUSED, "refused"), **self.slots}


def _unnamed(parts: list[str]) -> tuple[list[str], str]:
    """The parts of a PEFT key without the name of its adapter slot, and that name: ``lora_A.default.weight``."""
    place = -2 if parts[-1] == "weight" else -1
    if len(parts) + place > 1 and parts[place - 1] in _NAMED and _NAME.fullmatch(parts[place]):
        return [*parts[:place], *parts[place:][1:]], parts[place]
    return parts, ""
