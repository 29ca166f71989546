"""PEFT's ``LoraConfig`` as a schema to exchange settings in; PEFT itself is never imported.

Field names are those of PEFT 0.21.2 (``peft/tuners/lora/config.py``), unchanged since 0.5.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from reelora.errors import ConfigError
from reelora.tensorio import shown

if TYPE_CHECKING:
    from .spec import LoraSpec

__all__ = ["config_fields", "no_plain_lora", "renamed", "spec_fields"]

FIELDS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "target_modules",
    "init_lora_weights": "init",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
"""PEFT's name of each setting, and ours."""

INITS = {True: "kaiming", "gaussian": "gaussian"}
"""PEFT's ``init_lora_weights`` of each of our inits."""

NEEDED = ("r", "lora_alpha", "target_modules")

BOOKKEEPING = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
"""Fields that say nothing about the update."""

NO_PLAIN_LORA = {
    "alora_invocation_tokens": "acts only after certain tokens",
    "arrow_config": "routes between adapters",
    "fan_in_fan_out": "stores its weights transposed",
    "kasa_config": "filters the base's singular values",
    "layer_replication": "repeats layers",
    "lora_bias": "also holds biases",
    "modules_to_save": "also holds whole modules",
    "monteclora_config": "samples its weights",
    "target_parameters": "adapts bare parameters",
    "trainable_token_indices": "also holds token embeddings",
    "use_bdlora": "is block diagonal",
    "use_qalora": "pools its input",
}
"""Settings under which the update is not ``scale * B @ A``, and why."""

ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""What PEFT calls alpha in the config of each method that we read; in all of them the scale is ``alpha / r``."""

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Inits that subtract A and B from the base: the update is relative to a base that no file holds."""


def spec_fields(config: object) -> dict[str, Any]:
    """Keyword arguments of a LoraSpec from a ``LoraConfig`` (or a mapping of its fields), or one ConfigError for all of it."""
    settings = _settings(config)
    problems = [f"{name} is missing" for name in NEEDED if settings.get(name) is None]
    problems += [f"{name}={value!r} is not supported" for name, value in sorted(_foreign(config).items())]
    if (kind := getattr(settings.get("peft_type"), "value", settings.get("peft_type"))) not in (None, "LORA"):
        problems.append(f"peft_type is {kind}: only LORA is supported")
    if _init_name(init := settings.get("init_lora_weights", True)) is None:
        problems.append(f"init_lora_weights={init!r} is not supported: use True (Kaiming) or 'gaussian'")
    if problems:
        raise ConfigError("This peft.LoraConfig cannot be attached:\n" + "\n".join(f"- {line}" for line in problems))
    return convert(settings)


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file with the names that a ``LoraConfig`` has, whichever of `ALPHAS` they are of."""
    alpha = ALPHAS.get(_method(settings), "lora_alpha")
    return {"lora_alpha" if name == alpha else name: value for name, value in settings.items()}


def convert(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that we know, under our names and in our types; all others are left out."""
    known = {ours: settings[theirs] for theirs, ours in FIELDS.items() if settings.get(theirs) is not None}
    if "init" in known:
        known["init"] = _init_name(known["init"]) or "kaiming"
    targets = known.get("target_modules")
    if isinstance(targets, list | set | frozenset):  # a set has no order; a spec has one
        known["target_modules"] = tuple(targets if isinstance(targets, list) else sorted(targets))
    return known


def config_fields(spec: "LoraSpec") -> dict[str, Any]:
    """Keyword arguments of a ``LoraConfig`` with the settings of ``spec``."""
    ours = dataclasses.asdict(spec)
    fields = {theirs: ours[name] for theirs, name in FIELDS.items()}
    fields["init_lora_weights"] = next(theirs for theirs, name in INITS.items() if name == spec.init)
    if not isinstance(spec.target_modules, str):
        fields["target_modules"] = list(spec.target_modules)
    return {**fields, "bias": "none", "peft_type": "LORA"}


def no_plain_lora(settings: Mapping[str, Any]) -> Iterator[str]:
    """Why a file's config describes something else than ``scale * B @ A`` on the published base; nothing if it does not."""
    if _method(settings) not in ALPHAS:
        yield f"peft_type={shown(settings['peft_type'])}: of PEFT's methods only {', '.join(ALPHAS)} can be read"
    for name, reason in NO_PLAIN_LORA.items():
        if settings.get(name):
            yield f"{name}={shown(settings[name])}: the adapter {reason}"
    if settings.get("bias", "none") != "none":
        yield f"bias={shown(settings['bias'])}: the adapter also holds biases of the base"
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(BASE_CHANGING_INITS):
        yield f"init_lora_weights={shown(init)}: this init also changed the base's weights"


def _method(settings: Mapping[str, Any]) -> str:
    """PEFT's name of the method; ``LORA`` where the settings do not say, as diffusers and finetrainers leave it out."""
    method = settings.get("peft_type")
    return "LORA" if method is None else str(method) if isinstance(method, str) else ""


def _init_name(init: object) -> str | None:
    return INITS.get(init) if isinstance(init, bool | str) else None


def _settings(config: object) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    raise ConfigError(f"A LoraSpec or a peft.LoraConfig is needed here, not {type(config).__name__}.")


def _foreign(config: object) -> dict[str, Any]:
    """Settings away from their default that have no place in a LoraSpec."""
    defaults = {} if isinstance(config, Mapping) else {field.name: field.default for field in _fields(config)}
    return {
        name: value
        for name, value in _settings(config).items()
        if name not in FIELDS and name not in BOOKKEEPING
        if value and value != "none" and value != defaults.get(name)
    }


def _fields(config: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(config)
