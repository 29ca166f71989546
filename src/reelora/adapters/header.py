"""What the header of an adapter file says beside the tensors.

diffusers packs the ``peft.LoraConfig`` of every role into one JSON object under ``lora_adapter_metadata``, each field with the
role in front (``transformer.r``); ours are further entries ``reelora.<name>``. Source: diffusers 0.42.1, loaders/lora_base.py,
``_save_lora_weights`` and ``write_lora_layers``.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from reelora.errors import AdapterError, ConfigError

from . import peft_schema
from .adapter import Adapter, Pair, by_role
from .spec import LoraSpec

__all__ = ["header_of", "provenance_of", "specs_of"]

PEFT_KEY = "lora_adapter_metadata"
OURS = "reelora."


def header_of(adapter: Adapter) -> dict[str, str]:
    """The metadata of a file with this adapter."""
    configs = {role: _true_spec(adapter.spec, pairs).to_peft_dict() for role, pairs in by_role(adapter.pairs).items()}
    fields = {f"{role}.{field}": value for role, config in configs.items() for field, value in config.items()}
    provenance = {f"{OURS}{name}": text for name, text in adapter.provenance.items()}
    return {"format": "pt", PEFT_KEY: json.dumps(fields, indent=2, sort_keys=True), **provenance}


def provenance_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Our own entries."""
    return {key.removeprefix(OURS): text for key, text in metadata.items() if key.startswith(OURS)}


def specs_of(metadata: Mapping[str, str], names: Iterable[str]) -> tuple[dict[str, LoraSpec], list[str]]:
    """The spec of every role whose strength the header tells, and everything about it that cannot be or that we cannot hold."""
    try:
        packed = _packed(metadata)
    except AdapterError as error:
        return {}, [str(error)]
    specs, problems = {}, []
    for role, paths in by_role(dict.fromkeys(names)).items():
        fields = {key.removeprefix(f"{role}."): value for key, value in packed.items() if key.startswith(f"{role}.")}
        try:
            if fields.get("r") is not None and fields.get("lora_alpha") is not None:
                specs[role] = _spec(fields, list(paths))
        except ConfigError as error:
            problems.append(f"the header's settings of the {role}: {error}")
    return specs, problems


def _spec(fields: Mapping[str, Any], paths: list[str]) -> LoraSpec:
    if problems := [*peft_schema.no_plain_lora(fields), *_slow_patterns(fields)]:
        raise ConfigError("; ".join(problems))
    known = peft_schema.convert(fields)
    if isinstance(known.get("target_modules", ""), str):
        # A stranger's expression may take for ever to match ("all-linear" is none at all); the paths of the pairs say the same.
        known["target_modules"] = tuple(paths)
    return LoraSpec(**known)


def _packed(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        packed = json.loads(metadata.get(PEFT_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"The header entry {PEFT_KEY} is no JSON: {error}") from error
    if not isinstance(packed, dict):
        raise AdapterError(f"The header entry {PEFT_KEY} has to be a JSON object, not {type(packed).__name__}")
    return packed


def _slow_patterns(fields: Mapping[str, Any]) -> list[str]:
    """Patterns of a file that could take for ever to match (a repeated group, or many repetitions)."""
    patterns = [*_keys(fields.get("rank_pattern")), *_keys(fields.get("alpha_pattern"))]
    return [
        f"the pattern {pattern[:80]!r} is too intricate for a module name"
        for pattern in patterns
        if len(pattern) > 1000 or re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3
    ]


def _keys(patterns: object) -> list[str]:
    return list(patterns) if isinstance(patterns, Mapping) else []


def _true_spec(spec: LoraSpec | None, pairs: Mapping[str, Pair]) -> LoraSpec:
    """The spec that the pairs were trained with if it tells the truth about every one of them, else one that does."""
    if spec and all(_describes(spec, path, pair) for path, pair in pairs.items()):
        return spec
    scales = {path: pair.scale for path, pair in pairs.items() if pair.scale is not None}
    return LoraSpec.describing({path: pair.rank for path, pair in pairs.items()}, scales)


def _describes(spec: LoraSpec, path: str, pair: Pair) -> bool:
    return spec.targets(path) and (spec.rank_of(path), spec.scale_of(path)) == (pair.rank, pair.scale)
