"""SwissArmyTransformer's names: one fused query-key-value, whose three LoRAs are numbered.

Source: CogVideo, sat/model/finetune/lora2.py.
"""

import re
from collections.abc import Iterable, Mapping

from .place import Place, Slot

__all__ = ["Sat"]

_LAYER = "model.diffusion_model.transformer.layers.{n}.attention"
_BLOCK = "transformer.transformer_blocks.{n}.attn1"

RULES: tuple[tuple[str, str], ...] = (
    (f"{_LAYER}.query_key_value.matrix_{{side}}.0", f"{_BLOCK}.to_q"),
    (f"{_LAYER}.query_key_value.matrix_{{side}}.1", f"{_BLOCK}.to_k"),
    (f"{_LAYER}.query_key_value.matrix_{{side}}.2", f"{_BLOCK}.to_v"),
    (f"{_LAYER}.dense.matrix_{{side}}.0", f"{_BLOCK}.to_out.0"),
)
"""Their tensor and our module: ``{n}`` is the layer, ``{side}`` A or B. Eight tensors a layer, whatever the depth."""

_ADAPTERS = r"lora|hada_|lokr_|dora_|oft_|\.matrix_[AB]\.|\.alpha$|\.diff(_b)?$"
_BASE = re.compile(rf"(model\.diffusion_model|conditioner|first_stage_model)\.(?!.*({_ADAPTERS})).+")
"""All else in a whole checkpoint: transformer, T5, VAE; but nothing that any adapter could be stored under."""


def _pattern(template: str) -> re.Pattern[str]:
    holes = {r"\{n\}": r"(?P<n>0|[1-9][0-9]*)", r"\{side\}": "(?P<side>[AB])"}
    text = re.escape(template)
    for hole, group in holes.items():
        text = text.replace(hole, group)
    return re.compile(text)


_READ = tuple((_pattern(theirs), ours) for theirs, ours in RULES)
_WRITE = tuple((_pattern(ours), theirs) for theirs, ours in RULES)


class Sat:
    """The grammar of ``RULES``."""

    def of_file(self, keys: Iterable[str], metadata: Mapping[str, str]) -> "Sat":
        return self

    def parse(self, key: str) -> Place | None:
        for pattern, ours in _READ:
            if match := pattern.fullmatch(key):
                return Place(ours.format(n=match["n"]), "A" if match["side"] == "A" else "B")
        return Place("", "base") if _BASE.fullmatch(key) else None

    def likeness(self, key: str) -> int:
        return len("matrix_A") if ".matrix_" in key else 0

    def spell(self, module: str, slot: Slot) -> str | None:
        for pattern, theirs in _WRITE:
            if (match := pattern.fullmatch(module)) and slot in ("A", "B"):
                return theirs.format(n=match["n"], side=slot)
        return None
