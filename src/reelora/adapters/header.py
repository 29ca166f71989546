"""PEFT settings in the header of a file or beside it, both ways.

diffusers packs the ``peft.LoraConfig`` of every role into one JSON object under ``lora_adapter_metadata``, each field with the
role in front (``transformer.r``); ``save_lora_adapter``, PEFT and finetrainers leave the role out. Ours are further entries
``reelora.<name>``. Source: diffusers 0.42.1, loaders/lora_base.py, ``_save_lora_weights`` and ``write_lora_layers``.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from reelora.errors import ConfigError

from . import peft_schema
from .adapter import Adapter, by_role
from .pair import Pair
from .spec import LoraSpec

__all__ = ["PROOF_KEY", "header_of", "ours_of", "peft_config_of", "provenance_of", "specs_of"]

PEFT_KEY = "lora_adapter_metadata"
OURS = "reelora."
PROOF_KEY = f"{OURS}proof"
"""How exact the writing of this very file was; a fact of the file, not of the adapter."""


def header_of(adapter: Adapter) -> dict[str, str]:
    """The metadata of a file in diffusers' layout with this adapter."""
    configs = {role: peft_config_of(adapter.spec, pairs) for role, pairs in by_role(adapter.pairs).items()}
    fields = {f"{role}.{field}": value for role, config in configs.items() for field, value in config.items()}
    return {"format": "pt", PEFT_KEY: json.dumps(fields, indent=2, sort_keys=True), **ours_of(adapter)}


def ours_of(adapter: Adapter) -> dict[str, str]:
    """Our own entries: its provenance."""
    return {f"{OURS}{name}": text for name, text in adapter.provenance.items()}


def provenance_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Our own entries of a file about its adapter."""
    return {key.removeprefix(OURS): text for key, text in metadata.items() if key.startswith(OURS) and key != PROOF_KEY}


def peft_config_of(spec: LoraSpec | None, pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """Fields of a ``LoraConfig`` that tells the truth about every pair of one role: the spec's own where it does."""
    if spec is None or not all(_describes(spec, path, pair) for path, pair in pairs.items()):
        scales = {path: pair.scale for path, pair in pairs.items() if pair.scale is not None}
        spec = LoraSpec.describing({path: pair.rank for path, pair in pairs.items()}, scales)
    dora = {"use_dora": True} if any(pair.magnitude for pair in pairs.values()) else {}
    return {**spec.to_peft_dict(), **dora}


def specs_of(packed: Mapping[str, Any], names: Iterable[str]) -> tuple[dict[str, tuple[LoraSpec, list[str]]], list[str]]:
    """The spec and the paths of every role whose strength the settings tell, and everything about them that cannot be.

    Settings without a role belong to the only role of the adapter.
    """
    specs, problems = {}, []
    roles = by_role(dict.fromkeys(names))
    for role, paths in roles.items():
        fields = {key.removeprefix(f"{role}."): value for key, value in packed.items() if key.startswith(f"{role}.")}
        fields = peft_schema.renamed(fields or (packed if len(roles) == 1 else {}))
        try:
            if odd := list(peft_schema.no_plain_lora(fields)):
                raise ConfigError("; ".join(odd))
            if fields.get("r") is not None and fields.get("lora_alpha") is not None:
                specs[role] = _spec(fields, list(paths)), list(paths)
        except ConfigError as error:
            problems.append(f"the settings of the {role}: {error}")
    return specs, problems


def _spec(fields: Mapping[str, Any], paths: list[str]) -> LoraSpec:
    known = peft_schema.convert(fields)
    if isinstance(known.get("target_modules", ""), str):
        # A stranger's expression may take for ever to match ("all-linear" is none at all); the paths of the pairs say the same.
        known["target_modules"] = tuple(paths)
    return LoraSpec(**known)


def _describes(spec: LoraSpec, path: str, pair: Pair) -> bool:
    return spec.targets(path) and (spec.rank_of(path), spec.scale_of(path)) == (pair.rank, pair.scale)
